import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip import pretrained
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor

from d4c.artifact.architecture import ResNetConfig
from d4c.artifact.open_clip_names import name_table
from d4c.errors import ModelFileError, UnknownNameError, UnsupportedModelError
from d4c.inputs import Preprocess, Tokenizer
from d4c.models import Clip, from_open_clip, load, timm_towers
from d4c.models.attention import QuickGELU
from d4c.models.clip import build_towers
from d4c.models.from_open_clip import clip_from_open_clip_state, config_from_open_clip
from d4c.models.names import registered_names
from models.oracle import RESNET, VIT, changed, inputs_for, open_clip_model, parity_errors, write_folder
from models.transformers_oracle import TEXTS, siglip2_tokenizer

TANH = {"act_kwargs": {"approximate": "tanh"}}
# One case an option; values far from the defaults, so that ignoring one shows in the embeddings.
VARIANTS = {
    "plain": VIT,
    "quick_gelu": changed(VIT, quick_gelu=True),
    "gelu_tanh": changed(VIT, vision=TANH, text=TANH),
    "norm_kwargs": changed(VIT, vision={"norm_kwargs": {"eps": 0.1}}, text={"norm_kwargs": {"eps": 0.2}}),
    "mlp_ratio": changed(VIT, vision={"mlp_ratio": 2.0}, text={"mlp_ratio": 3.7362}),
    "ls_init_value": changed(VIT, vision={"ls_init_value": 1e-4}, text={"ls_init_value": 1e-4}),
    "no_ln_pre": changed(VIT, vision={"no_ln_pre": True}),
    "pool_type avg": changed(VIT, vision={"pool_type": "avg"}),
    "pool_type avg, final_ln_after_pool": changed(VIT, vision={"pool_type": "avg", "final_ln_after_pool": True}),
    "pool_type tok, final_ln_after_pool": changed(VIT, vision={"pool_type": "tok", "final_ln_after_pool": True}),
    "pos_embed_type": changed(VIT, vision={"pos_embed_type": "sin_cos_2d"}),
    "head_width": changed(VIT, vision={"head_width": 8}, text={"heads": 6}),
    "patch_dropout": changed(VIT, vision={"patch_dropout": 0.5}),  # in training only
    "patches do not fill the image": changed(VIT, vision={"image_size": 30}),
    "sizes as pairs": changed(VIT, vision={"image_size": [24, 24], "patch_size": [8, 8]}),
    "no_causal_mask": changed(VIT, text={"no_causal_mask": True}),
    "text pool_type first": changed(VIT, text={"pool_type": "first"}),
    "text pool_type last": changed(VIT, text={"pool_type": "last"}),
    "no_causal_mask, pool_type last": changed(VIT, text={"no_causal_mask": True, "pool_type": "last"}),
    "no_causal_mask, pool_type first": changed(VIT, text={"no_causal_mask": True, "pool_type": "first"}),
    "proj_bias": changed(VIT, text={"proj_bias": True}),
    "custom_text": changed(VIT, custom_text=True),
    "custom_text, proj_bias": changed(VIT, custom_text=True, text={"proj_bias": True, "ls_init_value": 0.1}),
    "init_logit_bias": changed(VIT, custom_text=True, init_logit_bias=-10),
    "nonscalar_logit_scale": changed(VIT, nonscalar_logit_scale=True, init_logit_bias=-3),
    "resnet": RESNET,
    "resnet quick_gelu": changed(RESNET, quick_gelu=True),
    "resnet head_width": changed(RESNET, vision={"head_width": 32}),
    "resnet custom_text": changed(RESNET, custom_text=True, vision={"layers": [1, 3, 2, 1], "image_size": 96}),
}  # fmt: skip

REFUSED = {
    "vision_cfg": {
        "timm_model_name": "resnet50",
        "attentional_pool": "parallel",
        "block_type": "custom",
        "qk_norm": True,
        "scaled_cosine_attn": True,
        "scale_heads": True,
        "scale_attn_inner": True,
        "scale_attn": True,
        "scale_fc": True,
        "pool_type": "none",
        "image_size": [32, 64],
        "patch_size": [8, 4],
        "input_patchnorm": True,  # an option of another version of open_clip
    },
    "text_cfg": {
        "hf_model_name": "roberta-base",
        "tokenizer_kwargs": {"clean": "canonicalize"},  # without a tokenizer's name
        "embed_cls": True,
        "block_type": "custom",
        "qk_norm": True,
        "scaled_cosine_attn": True,
        "scale_heads": True,
        "scale_attn_inner": True,
        "scale_attn": True,
        "scale_fc": True,
        "pool_type": "eos",
        "proj_type": "none",
        "use_pad_mask": True,
    },
}
# What open_clip itself ignores in a model without a timm, Hugging Face or attentional-pool part.
WITHOUT_EFFECT = {
    "vision_cfg": {
        "attn_pooler_queries", "attn_pooler_heads", "output_tokens", "timm_model_pretrained", "timm_pool", "timm_proj",
        "timm_proj_bias", "timm_drop", "timm_drop_path",
    },
    "text_cfg": {
        "tokenizer_mode", "pad_id", "eos_id", "final_ln_after_pool", "output_tokens", "hf_model_pretrained",
        "hf_proj_type", "hf_pooler_type",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def vit_state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in open_clip_model(VIT).state_dict().items()}


def clip_from(config: dict[str, Any], state: dict[str, Tensor]) -> Clip:
    canonical = config_from_open_clip(config, "it")
    preprocess = from_open_clip.preprocess_from_open_clip({}, canonical.image.image_size)
    return clip_from_open_clip_state(canonical, state, preprocess, "it")


@pytest.mark.parametrize(
    "settings", [{"mean": 0.5}, {"std": [1, 1]}, {"std": [1, 1, -1]}, {"resize_mode": "longest", "fill_color": 255}],
    ids=str,
)  # fmt: skip
def test_preprocessing_that_makes_no_sense_or_that_we_lack_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ModelFileError, UnsupportedModelError), match="preprocess"):
        from_open_clip.preprocess_from_open_clip(settings, 24)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_embeds_as_open_clip_does(variant: str, tmp_path: Path) -> None:
    model = open_clip_model(VARIANTS[variant])
    clip = load(f"local-dir:{write_folder(tmp_path, VARIANTS[variant], model.state_dict())}")
    assert max(parity_errors(clip, model)) < 1e-5
    pixels, ids = inputs_for(clip)
    with torch.no_grad():
        torch.testing.assert_close(clip(pixels, ids), model.get_logits(pixels, ids)[0], rtol=1e-4, atol=1e-4)
        normalized = clip.encode_image(pixels, normalize=True), clip.encode_text(ids, normalize=True)
        torch.testing.assert_close(normalized[0], model.encode_image(pixels, normalize=True))
        torch.testing.assert_close(normalized[1], model.encode_text(ids, normalize=True))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_open_clip_reads_the_same_folder_the_same_way(kind: str, request: pytest.FixtureRequest) -> None:
    folder = f"local-dir:{request.getfixturevalue(f'{kind}_folder')}"
    clip, model = load(folder), open_clip.create_model(folder).eval()
    assert max(parity_errors(clip, model)) < 1e-5


def test_the_text_tower_may_have_a_module_of_its_own_or_not(vit_state: dict[str, Tensor]) -> None:
    nested = {n if n.startswith(("visual.", "logit")) else f"text.{n}": tensor for n, tensor in vit_state.items()}
    assert clip_from(VIT, nested).fingerprint == clip_from(VIT, vit_state).fingerprint


@pytest.mark.parametrize(
    "name",
    ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"],
)
def test_every_weight_file_of_a_folder_is_found(name: str, vit_state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_folder(tmp_path, VIT, vit_state)
    (folder / "open_clip_model.safetensors").unlink()
    if name.endswith(".bin"):
        torch.save(vit_state, folder / name)
    else:
        save_file(vit_state, folder / name)
    assert load(f"local-dir:{folder}").fingerprint == clip_from(VIT, vit_state).fingerprint


@pytest.mark.parametrize(("section", "option"), [(s, option) for s, options in REFUSED.items() for option in options])
def test_what_is_not_covered_is_refused_by_name_before_weights_are_read(
    section: str, option: str, tmp_path: Path
) -> None:
    config = changed(VIT)
    config[section][option] = REFUSED[section][option]
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(UnsupportedModelError) as error:  # and not that there are no weights
        load(f"local-dir:{tmp_path}")
    what = "option clean" if option == "tokenizer_kwargs" else option
    what = f"not {REFUSED[section][option]}" if option in ("image_size", "patch_size") else what
    assert what in str(error.value)
    assert f"local-dir:{tmp_path}" in str(error.value)


def test_coca_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**VIT, "multimodal_cfg": {}}}))
    with pytest.raises(UnsupportedModelError, match="CoCa"):
        load(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(("section", "options"), [("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)])
def test_no_option_of_open_clip_is_forgotten(section: str, options: type) -> None:
    plain = VIT[section].keys()
    translated = {option for config in VARIANTS.values() for option in config[section].keys() - plain} | plain
    known = translated | REFUSED[section].keys() | WITHOUT_EFFECT[section] | {"hf_tokenizer_name"}  # see SigLIP below
    assert {field.name for field in dataclasses.fields(options)} <= known


@pytest.mark.parametrize("section", ["vision_cfg", "text_cfg"])
def test_options_without_effect_are_accepted(section: str) -> None:
    config = changed(VIT)
    config[section] |= dict.fromkeys(WITHOUT_EFFECT[section], True)
    assert config_from_open_clip(config, "it") == config_from_open_clip(VIT, "it")


@pytest.mark.parametrize("option", [o for options in REFUSED.values() for o in options if not o.endswith("_size")])
def test_an_option_that_is_switched_off_is_no_reason_to_refuse(option: str) -> None:
    if option in ("pool_type", "proj_type"):
        config = changed(VIT, vision={"pool_type": "tok"}, text={"pool_type": "argmax", "proj_type": "linear"})
    else:
        config = changed(VIT, vision={option: False}, text={option: None})
    assert config_from_open_clip(config, "it") == config_from_open_clip(VIT, "it")


def covered(model_cfg: dict[str, Any]) -> bool:
    """Whether a registered model is a CLIP or SigLIP as their authors put them together."""
    text, timm = model_cfg["text_cfg"], model_cfg["vision_cfg"].get("timm_model_name", "siglip")
    return not (
        "multimodal_cfg" in model_cfg
        or "siglip" not in timm
        or "hf_model_name" in text
        or text.get("pool_type") == "eos"
        or text.get("proj_type") == "none"
        or "strip_sep_token" in text.get("tokenizer_kwargs", {})
    )


@pytest.mark.parametrize("name", [name for name in registered_names() if not name.endswith("-quickgelu")])
def test_every_registered_architecture_is_translated_whole_or_refused(name: str) -> None:
    model_cfg = open_clip.get_model_config(name)
    if not covered(model_cfg):
        with pytest.raises(UnsupportedModelError, match=f"^{name}: "):
            config_from_open_clip(model_cfg, name)
        return
    config = config_from_open_clip(model_cfg, name)
    model_class = open_clip.CustomTextCLIP if model_cfg.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        theirs = {n: [*t.shape] for n, t in model_class(**model_cfg).state_dict().items() if "num_batches" not in n}
    image, text = build_towers(config)
    ours = {**image.state_dict(prefix="image."), **text.state_dict(prefix="text."), "logit_scale": torch.tensor(0.0)}
    entries = name_table(config, "text." if "text.token_embedding.weight" in theirs else "")
    assert {n for n in ours if "num_batches" not in n} == {n for entry in entries for n in entry.ours}
    for entry in entries:
        shape = theirs.pop(entry.theirs)
        shape = shape[1:] if entry.batched else shape
        for n in entry.ours:
            part = [shape[0] // len(entry.ours), *shape[1:]] if shape else shape
            assert [*ours[n].shape] == (part[::-1] if entry.transposed else part), entry.theirs
    assert not theirs.keys() - {"logit_bias"}


@pytest.mark.parametrize("name", [n for n in registered_names() if "SigLIP" in n and "SO400M-16-SigLIP-i18n" not in n])
def test_a_siglip_tower_of_timm_computes_with_its_own_activation_and_norms(name: str) -> None:
    model_cfg = open_clip.get_model_config(name)
    image = config_from_open_clip(model_cfg, name).image
    assert not isinstance(image, ResNetConfig)
    with torch.device("meta"):
        tower = timm.create_model(model_cfg["vision_cfg"]["timm_model_name"], num_classes=0)
    activations = [m for m in tower.modules() if type(m).__name__.startswith("GELU")]
    assert len(activations) == image.layers + 1
    for module in activations:
        tanh = type(module).__name__ == "GELUTanh" or getattr(module, "approximate", "none") == "tanh"
        assert tanh == (image.activation == "gelu_tanh")
    assert {m.eps for m in tower.modules() if isinstance(m, torch.nn.LayerNorm)} == {image.norm_eps}
    assert {m.num_heads for m in tower.modules() if hasattr(m, "num_heads")} == {image.heads}
    assert tower.patch_embed.num_patches == image.num_tokens


@pytest.mark.parametrize(
    "name", [n for n in registered_names() if n.endswith("-quickgelu") and covered(open_clip.get_model_config(n))]
)
def test_quickgelu_names_differ_in_the_activation_alone(name: str) -> None:
    quick, plain = (
        config_from_open_clip(open_clip.get_model_config(n), n) for n in (name, name.removesuffix("-quickgelu"))
    )
    for ours, other in ((quick.text, plain.text), (quick.image, plain.image)):
        if not isinstance(ours, ResNetConfig):
            assert ours.activation == "quick_gelu"
            ours = dataclasses.replace(ours, activation=other.activation)  # type: ignore[union-attr]
        assert ours == other


@pytest.mark.parametrize("kind", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_parameter_that_is_missing_is_named(kind: dict[str, Any]) -> None:
    state = open_clip_model(kind).state_dict()
    for name in [n for n in state if "num_batches" not in n]:
        with pytest.raises(ModelFileError, match=f"it: parameter {re.escape(name)} is missing"):
            clip_from(kind, {n: tensor for n, tensor in state.items() if n != name})


@pytest.mark.parametrize(
    ("kind", "name", "ours", "needed"),
    [
        (VIT, "visual.class_embedding", "image.class_embedding", [32]),
        (VIT, "visual.positional_embedding", "image.position_embedding", [10, 32]),
        (VIT, "visual.conv1.weight", "image.patch_embedding.weight", [32, 3, 8, 8]),
        (VIT, "visual.proj", "image.projection.weight", [24, 32]),
        (VIT, "visual.transformer.resblocks.1.attn.in_proj_weight", "image.blocks.1.attention.q.weight", [32, 32]),
        (VIT, "transformer.resblocks.0.attn.in_proj_bias", "text.blocks.0.attention.q.bias", [48]),
        (VIT, "transformer.resblocks.0.mlp.c_fc.weight", "text.blocks.0.mlp.fc1.weight", [192, 48]),
        (VIT, "token_embedding.weight", "text.token_embedding.weight", [60, 48]),
        (RESNET, "visual.bn1.running_var", "image.stem.bn1.running_var", [4]),
        (RESNET, "visual.layer2.0.downsample.0.weight", "image.layer2.0.shortcut.conv.weight", [64, 32, 1, 1]),
        (RESNET, "visual.attnpool.c_proj.bias", "image.pool.out.bias", [24]),
    ],
    ids=lambda value: value.removeprefix("visual.") if isinstance(value, str) else "",
)
def test_a_misshapen_parameter_is_named_with_the_shape_it_needs(
    kind: dict[str, Any], name: str, ours: str, needed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.openai(12)
    monkeypatch.setattr(Tokenizer, "openai", lambda _: tokenizer)  # the slow half of a load
    state = open_clip_model(kind).state_dict()
    right = state[name]
    for wrong in (
        right.repeat(3, *[1] * (right.ndim - 1)),
        right[:1],
        right.flatten()[:3],
        right[None],
        right.flatten()[0],
    ):
        with pytest.raises(ModelFileError) as error:
            clip_from(kind, state | {name: wrong})
        assert ours in str(error.value)
        assert str(error.value).endswith(f"the model needs {needed}")


@pytest.mark.parametrize("shape", [[2], [1, 2], [0]])
@pytest.mark.parametrize("name", ["logit_scale", "logit_bias"])
def test_a_logit_factor_is_one_number(name: str, shape: list[int], vit_state: dict[str, Tensor]) -> None:
    with pytest.raises(ModelFileError, match=name):
        clip_from(VIT, vit_state | {name: torch.ones(shape)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("visual.class_embedding", "image.class_embedding"),
        ("transformer.resblocks.1.attn.in_proj_weight", "text.blocks.1.attention.v.weight"),
        ("logit_scale", "logit_scale"),
    ],
)
def test_weights_that_are_not_finite_are_an_error(
    name: str, ours: str, value: float, vit_state: dict[str, Tensor]
) -> None:
    broken = vit_state[name].clone()
    broken.view(-1)[-1] = value  # in_proj: the last of q, k and v
    with pytest.raises(ModelFileError, match=f"{ours}.*not finite"):
        clip_from(VIT, vit_state | {name: broken})


def test_a_parameter_too_many_is_an_error(vit_state: dict[str, Tensor]) -> None:
    with pytest.raises(ModelFileError, match=r"unexpected parameter visual\.extra\.weight"):
        clip_from(VIT, vit_state | {"visual.extra.weight": torch.ones(3)})
    with pytest.raises(ModelFileError, match=r"unexpected parameter visual\.ln_pre\.bias"):
        clip_from(changed(VIT, vision={"no_ln_pre": True}), vit_state)
    with pytest.raises(ModelFileError, match=r"unexpected parameter transformer\.resblocks\.1\."):
        clip_from(changed(VIT, text={"layers": 1}), vit_state)


BROKEN_CONFIGS = {
    "not JSON": "{",
    "a list": "[]",
    "no model_cfg": "{}",
    "model_cfg is null": '{"model_cfg": null}',
    "model_cfg is a list": '{"model_cfg": []}',
    "model_cfg is empty": '{"model_cfg": {}}',
    "no embed_dim": json.dumps({"model_cfg": {k: v for k, v in VIT.items() if k != "embed_dim"}}),
    "no vision_cfg": json.dumps({"model_cfg": {k: v for k, v in VIT.items() if k != "vision_cfg"}}),
    "no text_cfg": json.dumps({"model_cfg": {k: v for k, v in VIT.items() if k != "text_cfg"}}),
    "vision_cfg is a number": json.dumps({"model_cfg": {**VIT, "vision_cfg": 3}}),
    "a word for a width": json.dumps({"model_cfg": changed(VIT, vision={"width": "wide"})}),
    "three stages": json.dumps({"model_cfg": changed(RESNET, vision={"layers": [1, 1, 1]})}),
    "heads wider than the tower": json.dumps({"model_cfg": changed(VIT, vision={"head_width": 64})}),
}


@pytest.mark.parametrize("kind", BROKEN_CONFIGS)
def test_a_configuration_that_makes_no_sense_is_a_model_file_error(
    kind: str, vit_state: dict[str, Tensor], tmp_path: Path
) -> None:
    write_folder(tmp_path, VIT, vit_state)
    (tmp_path / "open_clip_config.json").write_text(BROKEN_CONFIGS[kind])
    with pytest.raises(ModelFileError, match=str(tmp_path)):
        load(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    "config",
    [
        changed(VIT, vision={"image_size": 7}),
        changed(RESNET, vision={"image_size": 48}),
        changed(VIT, text={"heads": 5}),
    ],
    ids=["no patch fits", "image is no multiple of 32", "heads do not divide the width"],
)
def test_sizes_that_the_towers_cannot_have_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"it: .*divisible"):
        config_from_open_clip(config, "it")


def test_a_folder_without_its_files_is_a_model_file_error(vit_state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_folder(tmp_path, VIT, vit_state)
    (folder / "open_clip_model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ModelFileError, match=r"no weights; expected one of open_clip_model\.safetensors"):
        load(f"local-dir:{folder}")
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(ModelFileError, match=r"open_clip_config\.json"):
        load(f"local-dir:{folder}")


def test_preprocessing_is_the_folder_s(vit_state: dict[str, Tensor], tmp_path: Path) -> None:
    ours = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
    given = load(f"local-dir:{write_folder(tmp_path, VIT, vit_state, preprocess_cfg=ours)}").preprocess
    assert dataclasses.asdict(given) == {**ours, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "size": 24}
    plain = load(f"local-dir:{write_folder(tmp_path, VIT, vit_state)}").preprocess
    assert load(f"local-dir:{write_folder(tmp_path, VIT, vit_state, preprocess_cfg=None)}").preprocess == plain
    assert (plain.size, plain.mean) == (24, open_clip.OPENAI_DATASET_MEAN)
    assert (plain.std, plain.interpolation, plain.resize_mode) == (open_clip.OPENAI_DATASET_STD, "bicubic", "shortest")
    write_folder(tmp_path, VIT, vit_state, preprocess_cfg={"interpolation": "random"})
    with pytest.raises(ModelFileError, match="random"):
        load(f"local-dir:{tmp_path}")


# Names and tags: the registry knows GELU, the tag knows with what it was trained.


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vit_state: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Every registered name is the small ViT, every download its weights; the list fills with the tags asked for."""
    asked: list[dict[str, Any]] = []
    save_file(vit_state, tmp_path / "open_clip_model.safetensors")

    def download(tag_cfg: dict[str, Any]) -> str:
        asked.append(tag_cfg)
        return str(tmp_path / "open_clip_model.safetensors")

    monkeypatch.setattr(from_open_clip, "registered_config", lambda _: changed(VIT))
    monkeypatch.setattr(pretrained, "download_pretrained", download)
    return asked


@pytest.mark.parametrize(
    ("name", "tag", "hub", "quick"),
    [
        ("ViT-B-32__laion2b_s34b_b79k", None, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/", False),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/", False),
        ("ViT-B/32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/", False),
        ("ViT-B/32__laion2b_s34b_b79k", None, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/", False),
        ("ViT-B/32", None, "timm/vit_base_patch32_clip_224.openai/", True),
        ("ViT-B/32", "openai", "timm/vit_base_patch32_clip_224.openai/", True),
        ("ViT-B-32__openai", None, "timm/vit_base_patch32_clip_224.openai/", True),
        ("ViT-B-32-quickgelu__openai", None, "timm/vit_base_patch32_clip_224.openai/", True),
        ("ViT-B-32__laion400m_e32", None, "timm/vit_base_patch32_clip_224.laion400m_e32/", True),
        ("ViT-L/14@336px", None, "timm/vit_large_patch14_clip_336.openai/", True),
        ("ViT-L/14@336px", "openai", "timm/vit_large_patch14_clip_336.openai/", True),
        ("ViT-L-14-336__openai", None, "timm/vit_large_patch14_clip_336.openai/", True),
    ],
)
def test_the_tag_decides_the_activation(
    name: str, tag: str | None, hub: str, quick: bool, registry: list[dict[str, Any]]
) -> None:
    clip = load(name, tag)
    assert [cfg["hf_hub"] for cfg in registry] == [hub]
    assert clip.config.image.activation == clip.config.text.activation == ("quick_gelu" if quick else "gelu")
    assert sum(isinstance(module, QuickGELU) for module in clip.modules()) == 4 * quick  # 2 + 2 blocks
    assert max(parity_errors(clip, open_clip_model(changed(VIT, quick_gelu=quick)))) < 1e-5
    assert max(parity_errors(clip, open_clip_model(changed(VIT, quick_gelu=not quick)))) > 1e-4


def test_preprocessing_is_the_tag_s(registry: list[dict[str, Any]]) -> None:
    assert load("ViT-B-32__openai").preprocess.mean == open_clip.OPENAI_DATASET_MEAN
    clipa = from_open_clip.load_registered("ViT-L-14-CLIPA", "datacomp1b").preprocess  # by name it would be refused
    assert (clipa.mean, clipa.interpolation, clipa.resize_mode) == ((0.485, 0.456, 0.406), "bilinear", "squash")
    assert clipa.size == 24


def test_a_refused_architecture_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "download_pretrained", lambda _: pytest.fail("downloaded"))
    with pytest.raises(UnsupportedModelError, match="multimodal_cfg"):
        load("coca_ViT-B-32__laion2b_s13b_b90k")
    with pytest.raises(UnsupportedModelError, match="timm_model_name = convnext_base"):
        load("convnext_base__laion400m_s13b_b51k")
    with pytest.raises(UnsupportedModelError, match="hf_model_name = roberta-base"):
        load("roberta-ViT-B-32__laion2b_s12b_b32k")


def test_a_download_that_fails_is_a_model_file_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(tag_cfg: dict[str, Any]) -> str:
        raise FileNotFoundError("no network")

    monkeypatch.setattr(pretrained, "download_pretrained", offline)
    with pytest.raises(ModelFileError, match="ViT-B-32, tag openai") as error:
        load("ViT-B/32")
    assert isinstance(error.value.__cause__, FileNotFoundError)


def test_weights_of_another_architecture_are_a_model_file_error(
    registry: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_open_clip, "registered_config", open_clip.get_model_config)  # ViT-B-32 at full size
    with pytest.raises(ModelFileError, match=r"ViT-B-32__openai: parameter visual\.transformer\.resblocks\.2\."):
        load("ViT-B/32")


def test_an_unknown_registered_name_or_tag_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'ViT-B-33'; did you mean 'ViT-B-32'"):
        from_open_clip.load_registered("ViT-B-33", "openai")
    with pytest.raises(UnknownNameError, match="unknown tag of RN50 'yfcc15'; did you mean 'yfcc15m'"):
        from_open_clip.load_registered("RN50", "yfcc15")


# SigLIP: timm's image tower, open_clip's text tower, the tokenizer of a Hugging Face repository.


@pytest.fixture
def siglip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, torch.nn.Module]:
    """A folder with a SigLIP whose towers are small for their names, and open_clip's model of it."""
    create_model = timm.create_model
    small = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 3.0}
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create_model(name, **small, **given))
    monkeypatch.setitem(timm_towers._SIZES, "base", (32, 2, 4, 3.0))
    tokenizer = siglip2_tokenizer()
    config = open_clip.get_model_config("ViT-B-16-SigLIP2")
    text = {"width": 48, "heads": 3, "layers": 2, "context_length": 16, "vocab_size": len(tokenizer)}
    config = changed(config, text=text, embed_dim=32)
    model = open_clip_model(config)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    tokenizer.save_pretrained(tmp_path)
    return write_folder(tmp_path, config, model.state_dict(), preprocess_cfg=preprocess), model


def test_siglip_embeds_as_open_clip_does(siglip: tuple[Path, torch.nn.Module]) -> None:
    folder, model = siglip
    clip = load(f"local-dir:{folder}")
    assert max(parity_errors(clip, model)) < 1e-5
    pixels, ids = inputs_for(clip)
    with torch.no_grad():
        torch.testing.assert_close(clip(pixels, ids), model.get_logits(pixels, ids)[0], rtol=1e-4, atol=1e-4)
    assert clip.preprocess.resize_mode == "squash"
    assert (clip.config.image.activation, clip.config.text.activation) == ("gelu", "gelu_tanh")  # type: ignore[union-attr]


@pytest.mark.parametrize("clean", ["canonicalize", "whitespace", "lower"])
def test_siglip_s_texts_get_open_clip_s_ids(clean: str, siglip: tuple[Path, torch.nn.Module]) -> None:
    folder, _ = siglip
    path = folder / "open_clip_config.json"
    settings = json.loads(path.read_text())
    settings["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": clean}
    path.write_text(json.dumps(settings))
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")
    ours = load(f"local-dir:{folder}").tokenizer
    for text in TEXTS:
        assert ours(text)[0].tolist() == theirs(text)[0].tolist(), text


def test_a_folder_without_the_tokenizer_it_names_is_a_model_file_error(siglip: tuple[Path, torch.nn.Module]) -> None:
    (siglip[0] / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"no tokenizer; expected one of tokenizer\.json"):
        load(f"local-dir:{siglip[0]}")


@pytest.mark.parametrize(
    ("option", "value"),
    [("timm_model_name", "convnext_base"), ("timm_model_name", "vit_base_patch16_siglip_gap_224"),
     ("timm_pool", "avg"), ("timm_proj", "linear"), ("image_size", 256)],
)  # fmt: skip
def test_towers_of_timm_put_together_otherwise_are_refused(
    option: str, value: Any, siglip: tuple[Path, torch.nn.Module]
) -> None:
    config = changed(open_clip.get_model_config("ViT-B-16-SigLIP"), vision={option: value})
    with pytest.raises(UnsupportedModelError, match=f"it: .*{value}"):
        config_from_open_clip(config, "it")


@pytest.mark.parametrize(
    "text", [{"tokenizer_mode": "clips"}, {"tokenizer_kwargs": {"strip_sep_token": True}},
             {"tokenizer_kwargs": {"clean": "other"}}]
)  # fmt: skip
def test_tokenizers_used_otherwise_are_refused(text: dict[str, Any]) -> None:
    config = changed(open_clip.get_model_config("ViT-B-16-SigLIP"), text=text)
    with pytest.raises(UnsupportedModelError, match="it: tokenizer_"):
        config_from_open_clip(config, "it")


def test_a_registered_siglip_asks_for_its_tokenizer_then_its_weights(
    siglip: tuple[Path, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    folder, model = siglip
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setattr(from_open_clip, "registered_config", lambda _: config)
    monkeypatch.setattr(from_open_clip, "fetch_tokenizer", lambda name: asked.append(name) or folder)

    def download(tag_cfg: dict[str, Any]) -> str:
        asked.append(tag_cfg["hf_hub"])
        return str(folder / "open_clip_model.safetensors")

    monkeypatch.setattr(pretrained, "download_pretrained", download)
    clip = load("ViT-B-16-SigLIP2__webli")
    assert asked == ["timm/ViT-B-16-SigLIP2", "timm/ViT-B-16-SigLIP2/"]
    assert clip.preprocess == Preprocess(224, (0.5,) * 3, (0.5,) * 3, resize_mode="squash")  # type: ignore[arg-type]
    assert max(parity_errors(clip, model)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance"), [("ViT-B-16-plus-240", 1e-5), ("ViT-B-16-SigLIP", 1e-5), ("ViT-H-14", 1e-4)]
)
def test_full_size_models_beyond_openai_s_embed_as_open_clip_does(
    name: str, tolerance: float, record_property: Callable[[str, object], None]
) -> None:
    model_cfg = open_clip.get_model_config(name) or {}
    model = open_clip_model(model_cfg)
    config = config_from_open_clip(model_cfg, name)
    preprocess = from_open_clip.preprocess_from_open_clip({}, config.image.image_size)
    clip = clip_from_open_clip_state(config, model.state_dict(), preprocess, name)
    errors = parity_errors(clip, model)
    record_property("open_clip", errors)
    assert max(errors) < tolerance

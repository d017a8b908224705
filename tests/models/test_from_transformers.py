import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, CLIPImageProcessorPil, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from d4c.artifact.transformers_names import transformers_name_table
from d4c.errors import ModelFileError, UnsupportedModelError
from d4c.inputs import Preprocess
from d4c.models import Clip, load
from d4c.models.clip import build_towers
from d4c.models.from_transformers import config_from_transformers, preprocess_from_transformers
from d4c.models.renaming import renamed_parameters
from d4c.models.weight_files import read_tensors
from models.oracle import inputs_for, inputs_of_size, row_error
from models.transformers_oracle import TEXTS, clip_folder, features, randomize, siglip_folder

Save = Callable[..., nn.Module]
KINDS: dict[str, Save] = {"clip": clip_folder, "siglip": siglip_folder}
# One case an option; values far from the defaults, so that ignoring one shows in the embeddings.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gelu": {"vision": {"hidden_act": "gelu"}, "hidden_act": "gelu"},
    "gelu_pytorch_tanh": {"vision": {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act": "gelu_pytorch_tanh"},
    "gelu_new": {"vision": {"hidden_act": "gelu_new"}, "hidden_act": "gelu_new"},
    "quick_gelu": {"vision": {"hidden_act": "quick_gelu"}, "hidden_act": "quick_gelu"},
    "layer_norm_eps": {"vision": {"layer_norm_eps": 0.1}, "layer_norm_eps": 0.2},
    "patches do not fill the image": {"vision": {"image_size": 30}},
    "one layer": {"vision": {"num_hidden_layers": 1}, "num_hidden_layers": 1},
}


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, nn.Module]:
    """The kind, its folder, which tests must not change, and Transformers' model."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, KINDS[request.param](folder)


def copied(folder: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def edited(folder: Path, to: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a folder, one of its JSON files edited."""
    copied(folder, to)
    data = json.loads((to / name).read_text())
    edit(data)
    (to / name).write_text(json.dumps(data))
    return to


def assert_same_embeddings(clip: Clip, model: nn.Module) -> None:
    pixels, ids = inputs_for(clip)
    ids[:, -1] = ids[:, 3]  # SigLIP reads whatever stands last
    images, texts = features(model, pixels, ids)
    assert row_error(clip.encode_image(pixels), images) < 1e-5
    assert row_error(clip.encode_text(ids), texts) < 1e-5
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(clip(pixels, ids), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_embeds_as_transformers_does(variant: str, kind: str, tmp_path: Path) -> None:
    model = KINDS[kind](tmp_path, **VARIANTS[variant])
    assert_same_embeddings(load(f"local-dir:{tmp_path}"), model)


def test_texts_get_transformers_ids(case: tuple[str, Path, nn.Module]) -> None:
    kind, folder, _ = case
    theirs = AutoTokenizer.from_pretrained(folder)
    settings = {"padding": "max_length", "truncation": True, "max_length": 16}
    ours = load(f"local-dir:{folder}").tokenizer
    for text in TEXTS:
        assert ours(text)[0].tolist() == theirs(text, **settings)["input_ids"], text
    assert ours.pad_id == theirs.pad_token_id
    assert type(theirs).__name__ == {"clip": "CLIPTokenizer", "siglip": "Siglip2Tokenizer"}[kind]


# Where an odd number of columns is cut off, Transformers cuts one more on the right and open_clip rounds to even: for
# CLIP these have even margins.
@pytest.mark.parametrize("shape", [(32, 24), (24, 40), (200, 90), (24, 24), (10, 7)])
def test_pictures_are_prepared_as_transformers_does(case: tuple[str, Path, nn.Module], shape: tuple[int, int]) -> None:
    kind, folder, _ = case
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC)
    processor = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}[kind].from_pretrained(folder)
    expected = processor(picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(load(f"local-dir:{folder}").preprocess(picture), expected, atol=0.02)  # one of 255 steps


def test_siglip_squashes_and_clip_crops(case: tuple[str, Path, nn.Module]) -> None:
    kind, folder, _ = case
    half = (0.5, 0.5, 0.5)
    expected = {"clip": Preprocess(24), "siglip": Preprocess(24, half, half, resize_mode="squash")}
    assert load(f"local-dir:{folder}").preprocess == expected[kind]


def test_every_form_of_the_weights_gives_the_same_model(case: tuple[str, Path, nn.Module], tmp_path: Path) -> None:
    _, folder, model = case
    expected = load(f"local-dir:{folder}").fingerprint
    model.save_pretrained(copied(folder, tmp_path / "shards"), max_shard_size="50KB")
    (tmp_path / "shards" / "model.safetensors").unlink()
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    (copied(folder, tmp_path / "bin") / "model.safetensors").unlink()
    old = {"text_model.embeddings.position_ids": torch.arange(16)[None]}  # in files of older versions
    torch.save(model.state_dict() | old, tmp_path / "bin" / "pytorch_model.bin")
    for form in ("shards", "bin"):
        assert load(f"local-dir:{tmp_path / form}").fingerprint == expected


def test_what_a_configuration_does_not_say_is_its_library_s_default() -> None:
    # google/siglip-base-patch16-224 and openai/clip-vit-base-patch32 say little more than this
    siglip = config_from_transformers({"model_type": "siglip", "text_config": {}, "vision_config": None}, "it")
    assert (siglip.embed_dim, siglip.image.width, siglip.image.num_tokens) == (768, 768, 196)  # type: ignore[union-attr]
    assert (siglip.text.context_length, siglip.text.vocab_size, siglip.text.norm_eps) == (64, 32000, 1e-6)
    assert siglip.text.activation == "gelu_tanh"
    clip = config_from_transformers({"model_type": "clip"}, "it")
    assert (clip.embed_dim, clip.text.width, clip.text.context_length, clip.text.heads) == (512, 512, 77, 8)
    assert (clip.image.patch_size, clip.image.activation) == (32, "quick_gelu")  # type: ignore[union-attr]


REFUSED: list[tuple[str, str, Callable[[dict[str, Any]], None], str]] = [
    ("siglip", "config.json", lambda c: c.update(model_type="siglip2"), "model_type = siglip2 .NaFlex"),
    ("clip", "config.json", lambda c: c.update(model_type="chinese_clip"), "model_type = chinese_clip"),
    ("clip", "config.json", lambda c: c.pop("model_type"), "model_type = None"),
    ("clip", "config.json", lambda c: c["vision_config"].update(hidden_act="relu"), "hidden_act = relu"),
    ("siglip", "config.json", lambda c: c["text_config"].update(hidden_act="silu"), "hidden_act = silu"),
    ("siglip", "config.json", lambda c: c["vision_config"].update(vision_use_head=False), "vision_use_head = False"),
    ("clip", "config.json", lambda c: c["vision_config"].update(num_channels=1), "num_channels = 1"),
    ("clip", "config.json", lambda c: c["vision_config"].update(image_size=[24, 32]), "only square"),
    ("clip", "config.json", lambda c: c["text_config"].update(eos_token_id=5), "eos_token_id = 5"),
    ("siglip", "config.json", lambda c: c["text_config"].update(num_attention_heads=5), "divisible by heads"),
    ("siglip", "config.json", lambda c: c["text_config"].update(projection_size=12), "projection from 32 to 12"),
    ("clip", "preprocessor_config.json", lambda c: c.update(resample=1), "resample = 1"),
    ("clip", "preprocessor_config.json", lambda c: c.update(do_normalize=False), "do_normalize = False"),
    ("clip", "preprocessor_config.json", lambda c: c.update(rescale_factor=1.0), "rescale_factor"),
    ("siglip", "preprocessor_config.json", lambda c: c.update(size={"height": 24, "width": 32}), "24 pixels"),
    ("clip", "preprocessor_config.json", lambda c: c.update(size={"shortest_edge": 32}), "24 pixels"),
    ("siglip", "tokenizer_config.json", lambda c: c.update(padding_side="left"), "padding_side = left"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "file", "edit", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_what_is_not_covered_is_refused_by_name_before_weights_are_read(
    kind: str, file: str, edit: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    KINDS[kind](tmp_path / "plain")
    folder = edited(tmp_path / "plain", tmp_path / "edited", file, edit)
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(UnsupportedModelError, match=words) as error:
        load(f"local-dir:{folder}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(case: tuple[str, Path, nn.Module], file: str, tmp_path: Path) -> None:
    folder = copied(case[1], tmp_path / "it")
    (folder / file).unlink()
    with pytest.raises(ModelFileError, match=file):
        load(f"local-dir:{folder}")


def test_a_parameter_that_is_missing_or_too_many_is_named(case: tuple[str, Path, nn.Module], tmp_path: Path) -> None:
    folder = copied(case[1], tmp_path / "it")
    state = load_file(folder / "model.safetensors")
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    for changed, words in (
        ({k: v for k, v in state.items() if k != name}, f"parameter {name} is missing"),
        (state | {"extra.weight": torch.ones(2)}, r"unexpected parameter extra\.weight"),
        (state | {name: torch.ones(3)}, r"image\.blocks\.1\.mlp\.fc1\.bias has shape \[3\], the model needs \[56\]"),
        (state | {name: torch.full((56,), torch.nan)}, "not finite"),
    ):
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(ModelFileError, match=words):
            load(f"local-dir:{folder}")


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "clip", "text_config": {"hidden_size": "wide"}}'])
def test_a_configuration_that_makes_no_sense_is_a_model_file_error(
    case: tuple[str, Path, nn.Module], content: str, tmp_path: Path
) -> None:
    folder = copied(case[1], tmp_path / "it")
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        load(f"local-dir:{folder}")


def test_a_tokenizer_of_another_model_is_an_error(tmp_path: Path) -> None:
    clip_folder(tmp_path / "it")
    path = tmp_path / "it" / "config.json"
    settings = json.loads(path.read_text())
    settings["text_config"]["vocab_size"] = 100
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelFileError, match="more words than the model, 100"):
        load(f"local-dir:{tmp_path / 'it'}")


def test_numbers_for_a_size_are_read_too() -> None:
    for size in (24, {"height": 24, "width": 24}):
        squashed = preprocess_from_transformers({"size": size, "do_center_crop": False}, 24, "it")
        assert squashed == Preprocess(24, resize_mode="squash")
    assert preprocess_from_transformers({"size": {"shortest_edge": 24}, "crop_size": 24}, 24, "it") == Preprocess(24)
    assert (
        preprocess_from_transformers({"size": 24, "crop_size": 24, "resample": 2}, 24, "it").interpolation == "bilinear"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_size": None}, {"size": [24, 24]}, {"size": {"height": 24, "width": 12}, "do_center_crop": False},
        {"rescale_factor": None}, {"image_mean": 0.5}, {"image_std": [0.5, 0.5, 0]}, {"image_mean": ["a", "b", "c"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_preprocessor_that_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ModelFileError, UnsupportedModelError), match=r"preprocess|prepared for another size"):
        preprocess_from_transformers(settings, 24, "it")


# google/siglip-base-patch16-224 is the library's default; siglip-so400m-patch14-384 has pixels beside whole patches.
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
FULL_SIZE: dict[str, dict[str, Any]] = {
    "siglip-base-patch16-224": {"vision": {}, "text": {}},
    "siglip-so400m-patch14-384": {"vision": {**SO400M, "image_size": 384, "patch_size": 14}, "text": SO400M},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_siglip_embeds_as_transformers_does(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    settings = SiglipConfig(vision_config=FULL_SIZE[name]["vision"], text_config=FULL_SIZE[name]["text"])
    model = randomize(SiglipModel(settings))
    config = config_from_transformers(settings.to_dict(), name)
    model.save_pretrained(tmp_path)
    pixels, ids = inputs_of_size(config.image.image_size, config.text.context_length, config.text.vocab_size, batch=2)
    expected = features(model, pixels, ids)
    del model
    state = renamed_parameters(read_tensors(tmp_path / "model.safetensors"), transformers_name_table(config), name, ())
    towers = build_towers(config)
    errors = []
    for prefix, tower, inputs, theirs in zip(("image.", "text."), towers, (pixels, ids), expected, strict=True):
        tower.load_state_dict({k: state[prefix + k] for k in tower.state_dict()}, assign=True)
        with torch.no_grad():
            errors.append(row_error(tower.eval()(inputs), theirs))
    (tmp_path / "model.safetensors").unlink()  # pytest keeps folders of earlier runs
    record_property("Transformers", errors)
    assert max(errors) < 1e-4

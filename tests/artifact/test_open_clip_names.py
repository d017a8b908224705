import dataclasses
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn

from conftest import RESNET, SIGLIP, VIT, random_state
from d4c.artifact.architecture import ClipConfig, VisionTransformerConfig
from d4c.artifact.open_clip_names import name_table, open_clip_model_cfg, to_open_clip
from d4c.inputs import Preprocess
from d4c.models import Clip
from d4c.models.clip import build_towers
from d4c.models.from_open_clip import clip_from_open_clip_state, config_from_open_clip, registered_config

assert isinstance(VIT.image, VisionTransformerConfig)
SCALED = ClipConfig(
    16,
    dataclasses.replace(VIT.image, layer_scale=True, pre_norm=False),
    dataclasses.replace(VIT.text, layer_scale=True),
)
CONFIGS = {"vit": VIT, "resnet": RESNET, "layer scale": SCALED}
OPENAI = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
COUNTERS = "num_batches_tracked"  # of BatchNorms in training


def cfg_of(name: str) -> dict[str, Any]:
    return open_clip_model_cfg(CONFIGS[name])


def arrays_of(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def theirs(name: str) -> nn.Module:
    """open_clip's own model with the seeded canonical parameters."""
    model = open_clip.CLIP(**cfg_of(name)).eval()
    arrays = to_open_clip(CONFIGS[name], arrays_of(random_state(CONFIGS[name])))
    model.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()}, strict=True)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_is_a_bijection_between_all_parameters_of_both(name: str) -> None:
    table = name_table(CONFIGS[name])
    their_names = [entry.theirs for entry in table]
    our_names = [ours for entry in table for ours in entry.ours]
    model = open_clip.CLIP(**cfg_of(name))
    assert sorted(their_names) == sorted(n for n in model.state_dict() if not n.endswith(COUNTERS))
    image, text = build_towers(CONFIGS[name])
    expected = [f"image.{n}" for n in image.state_dict() if not n.endswith(COUNTERS)]
    expected += [f"text.{n}" for n in text.state_dict()]
    assert sorted(our_names) == sorted([*expected, "logit_scale"])


def test_a_text_tower_of_its_own_has_a_prefix_and_may_have_a_bias() -> None:
    config = dataclasses.replace(VIT, text=dataclasses.replace(VIT.text, projection_bias=True))
    cfg = open_clip_model_cfg(config)
    expected = set(open_clip.CustomTextCLIP(**cfg).state_dict())
    assert {entry.theirs for entry in name_table(config, "text.")} == expected
    assert "text.text_projection.bias" in expected


@pytest.mark.parametrize("name", CONFIGS)
def test_open_clip_loads_what_is_written_strictly_and_reading_it_gives_the_same(name: str) -> None:
    config, state = CONFIGS[name], random_state(CONFIGS[name])
    written = {k: v for k, v in theirs(name).state_dict().items() if not k.endswith(COUNTERS)}
    clip = clip_from_open_clip_state(config, written, Preprocess(config.image.image_size), "test")
    again = {f"image.{k}": v for k, v in clip.image.state_dict().items() if not k.endswith(COUNTERS)}
    again |= {f"text.{k}": v for k, v in clip.text.state_dict().items()} | {"logit_scale": clip.logit_scale}
    assert set(again) == set(state)
    assert all(torch.equal(again[k], state[k]) for k in state)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_each_parameter_means_the_same_in_open_clip(
    name: str, request: pytest.FixtureRequest, pixels: Tensor, ids: Tensor
) -> None:
    clip: Clip = request.getfixturevalue("tiny_clip" if name == "vit" else "tiny_resnet")
    model = theirs(name)
    with torch.no_grad():
        pairs = [
            (clip.encode_image(pixels), model.encode_image(pixels)),
            (clip.encode_text(ids), model.encode_text(ids)),
        ]
    for ours, expected in pairs:
        assert ((ours - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-5


def test_splitting_and_transposing_are_as_by_hand() -> None:
    state = arrays_of(random_state(VIT))
    written = to_open_clip(VIT, state)
    packed = written["transformer.resblocks.1.attn.in_proj_weight"]
    assert packed.shape == (96, 32)  # q, k, v one below the other
    for i, part in enumerate("qkv"):
        assert np.array_equal(packed[32 * i : 32 * (i + 1)], state[f"text.blocks.1.attention.{part}.weight"])
    assert written["text_projection"].shape == (32, 16)
    assert np.array_equal(written["text_projection"], state["text.projection.weight"].T)
    assert np.array_equal(written["visual.proj"], state["image.projection.weight"].T)
    assert written["visual.proj"].flags.c_contiguous


def test_a_missing_parameter_is_named() -> None:
    state = arrays_of(random_state(VIT))
    del state["text.blocks.0.attention.k.bias"]
    with pytest.raises(KeyError, match=r"text\.blocks\.0\.attention\.k\.bias"):
        to_open_clip(VIT, state)


@pytest.mark.parametrize("name", OPENAI)
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_the_written_configuration_of_each_openai_architecture_reads_back(name: str, quick_gelu: bool) -> None:
    config = config_from_open_clip({**registered_config(name), "quick_gelu": quick_gelu}, name)
    assert config_from_open_clip(open_clip_model_cfg(config), name) == config


@pytest.mark.parametrize(("image", "text"), [
    ({"pre_norm": False, "layer_scale": True}, {"layer_scale": True}),
    ({"pooling": "mean", "norm_after_pooling": True, "mlp_width": 100}, {"pooling": "last", "projection_bias": True}),
    ({"activation": "gelu_tanh", "norm_eps": 1e-6}, {"activation": "gelu", "causal": False, "pooling": "first"}),
    ({"activation": "gelu"}, {"activation": "gelu_tanh", "norm_eps": 1e-6}),
])  # fmt: skip
def test_every_option_that_open_clip_has_reads_back(image: dict[str, Any], text: dict[str, Any]) -> None:
    assert isinstance(VIT.image, VisionTransformerConfig)
    config = ClipConfig(16, dataclasses.replace(VIT.image, **image), dataclasses.replace(VIT.text, **text))
    assert config_from_open_clip(open_clip_model_cfg(config), "test") == config


@pytest.mark.parametrize(("config", "words"), [
    (SIGLIP, "attention pooling"),
    (dataclasses.replace(VIT, image=dataclasses.replace(VIT.image, patch_bias=True)), "patches without bias"),
    (dataclasses.replace(VIT, image=dataclasses.replace(VIT.image, activation="gelu")), "QuickGELU in both"),
])  # fmt: skip
def test_what_open_clip_does_not_have_is_not_written_as_something_else(config: ClipConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_clip_model_cfg(config)

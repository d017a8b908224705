import copy
import dataclasses
import json
from typing import Any

import pytest

from d4c.artifact.architecture import ClipConfig, ResNetConfig, TextConfig, VisionTransformerConfig

TEXT = TextConfig(77, 100, 32, 2, 2, 128, "gelu", 1e-6, False, "last", True, True)
VIT = ClipConfig(
    24,
    VisionTransformerConfig(
        32, 16, 24, 3, 2, 96, "gelu_tanh", 1e-6, False, "attention", True, True, False, True, False
    ),
    TEXT,
)  # no default anywhere
RESNET = ClipConfig(16, ResNetConfig(64, 4, (3, 4, 6, 3), 4, False), TEXT)
PLAIN = ClipConfig(
    16, VisionTransformerConfig(32, 16, 24, 3, 2, 96, "quick_gelu"), TextConfig(77, 100, 32, 2, 2, 128, "quick_gelu")
)


@pytest.mark.parametrize("config", [VIT, RESNET, PLAIN])
def test_from_dict_inverts_to_dict_through_json(config: ClipConfig) -> None:
    data = json.loads(json.dumps(config.to_dict()))
    kept = copy.deepcopy(data)
    again = ClipConfig.from_dict(data)
    assert again == config
    assert type(again.image) is type(config.image)
    assert hash(again) == hash(config)  # no list is left where a tuple belongs
    assert data == kept


def test_every_field_is_written() -> None:
    # Each differs from its default, so that one which is lost on the way shows.
    for part in (VIT.image, RESNET.image, VIT.text):
        for field in dataclasses.fields(part):
            assert field.name == "kind" or getattr(part, field.name) != field.default
    assert VIT.to_dict()["image"] == {
        "image_size": 32, "patch_size": 16, "width": 24, "layers": 3, "heads": 2, "mlp_width": 96,
        "activation": "gelu_tanh", "norm_eps": 1e-6, "pre_norm": False, "pooling": "attention",
        "norm_after_pooling": True, "layer_scale": True, "class_token": False, "patch_bias": True, "projection": False,
        "kind": "vit",
    }  # fmt: skip


def test_options_that_came_later_are_not_written_at_their_default() -> None:
    # as the first artifacts have it, and what their fingerprints hash: the same keys in the same order
    assert list(PLAIN.to_dict()["image"]) == [
        "image_size", "patch_size", "width", "layers", "heads", "mlp_width", "activation", "norm_eps", "pre_norm",
        "pooling", "norm_after_pooling", "layer_scale", "kind",
    ]  # fmt: skip
    assert list(RESNET.to_dict()["image"]) == ["image_size", "width", "layers", "heads", "batch_norm", "kind"]


@pytest.mark.parametrize(
    ("image_size", "patch_size", "width", "heads"),
    [(32, 16, 24, 5), (8, 16, 24, 2)],
)
def test_a_vit_that_cannot_be_is_refused(image_size: int, patch_size: int, width: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"{image_size}/{patch_size}, {width}/{heads}"):
        VisionTransformerConfig(image_size, patch_size, width, 1, heads, 96, "gelu")


@pytest.mark.parametrize(
    ("image_size", "width", "layers", "heads"),
    [(48, 4, (1, 1, 1, 1), 4), (64, 4, (1, 1, 1), 4), (64, 4, (1, 1, 1, 1), 3), (64, 4, (1, 1, 1, 1, 1), 4)],
)
def test_a_resnet_that_cannot_be_is_refused(image_size: int, width: int, layers: Any, heads: int) -> None:
    with pytest.raises(ValueError, match="four stages"):
        ResNetConfig(image_size, width, layers, heads)


def test_pixels_beside_whole_patches_make_no_token() -> None:
    # SigLIP so400m sees 384 pixels in patches of 14: 27 fit in a row, so 27 x 27 tokens
    vit = VisionTransformerConfig(384, 14, 24, 1, 2, 96, "gelu", pooling="attention", class_token=False)
    assert vit.num_tokens == 729
    assert VisionTransformerConfig(32, 16, 24, 1, 2, 96, "gelu").num_tokens == 5


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="class token"):
        VisionTransformerConfig(32, 16, 24, 1, 2, 96, "gelu", class_token=False)
    tower = VisionTransformerConfig(32, 16, 24, 1, 2, 96, "gelu", projection=False)
    with pytest.raises(ValueError, match="from 24 to 16"):
        ClipConfig(16, tower, TEXT)


def test_a_text_tower_whose_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="32/3"):
        TextConfig(77, 100, 32, 2, 3, 128, "gelu")


def changed(config: ClipConfig, section: str | None, **changes: Any) -> dict[str, Any]:
    """The dictionary of a configuration with some keys set, or gone where the value is None."""
    data = config.to_dict()
    part = data if section is None else data[section]
    part.update(changes)
    for key in [k for k, v in changes.items() if v is None]:
        del part[key]
    return data


@pytest.mark.parametrize(
    "data",
    [
        changed(VIT, "image", kind="swin"),
        changed(VIT, "image", kind=None),
        changed(VIT, "image", width=None),
        changed(VIT, "image", image_size=15),
        changed(VIT, "image", registers=4),  # of a later version
        changed(RESNET, "image", layers=None),
        changed(RESNET, "image", layers=3),
        changed(RESNET, "image", layers=[3, 4, 6]),
        changed(VIT, "text", heads=3),
        changed(VIT, "text", vocab_size=None),
        changed(VIT, None, text=None),
        changed(VIT, None, embed_dim=None),
        changed(VIT, None, image=[]),
        {},
    ],
)
def test_data_that_describes_no_known_model_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        ClipConfig.from_dict(data)


def test_the_known_kinds_are_named() -> None:
    with pytest.raises(ValueError, match="'swin'; known: 'vit', 'resnet'"):
        ClipConfig.from_dict(changed(VIT, "image", kind="swin"))

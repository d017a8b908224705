"""The paper's recipes on the sizes that the method counts (method, sections 3.2 and 4.2)."""

import pytest
import torch

from d4c.artifact.architecture import ClipConfig, ResNetConfig, TextConfig, VisionTransformerConfig
from d4c.inputs import Preprocess, Tokenizer
from d4c.models import Clip, sites_of
from d4c.models.clip import build_towers
from d4c.quantizers.grids import PerChannel
from d4c.quantizers.scheme import Scheme, resolve_scheme
from d4c.recipes import load_recipe

TEXT = TextConfig(77, 49408, 512, 12, 8, 2048, "quick_gelu")
VIT_B_32 = ClipConfig(512, VisionTransformerConfig(224, 32, 768, 12, 12, 3072, "quick_gelu"), TEXT)
RN50 = ClipConfig(1024, ResNetConfig(224, 64, (3, 4, 6, 3), 32), TEXT)


def scheme_of(config: ClipConfig, recipe: str) -> Scheme:
    """On the meta device: shapes without values."""
    towers = build_towers(config)
    clip = Clip(config, *towers, torch.tensor(4.6), tokenizer=Tokenizer.openai(77), preprocess=Preprocess(224),
                source="meta", fingerprint="")  # fmt: skip
    return resolve_scheme(load_recipe(recipe), sites_of(clip))


@pytest.mark.parametrize("recipe", ["paper-w4a8", "paper-w6a6", "paper-w8a8"])
def test_quantizers_are_as_many_as_the_method_counts(recipe: str) -> None:
    vit = scheme_of(VIT_B_32, recipe)
    assert (len(vit.weights), len(vit.inputs) + len(vit.tensors)) == (144, 240)
    image = scheme_of(RN50, recipe).of_tower("image")
    assert (len(image.weights), len(image.inputs) + len(image.tensors)) == (52, 56)


def test_inputs_behind_a_layernorm_have_a_scale_for_each_channel() -> None:
    for config in (VIT_B_32, RN50):
        for layer, given in scheme_of(config, "paper-w4a8").inputs.items():
            behind = layer.endswith((".attention.q", ".attention.k", ".attention.v", ".mlp.fc1"))
            text_hidden = layer.startswith("text.") and layer.endswith(".mlp.fc2")
            assert isinstance(given.granularity, PerChannel) == ((behind and ".blocks." in layer) or text_hidden), layer


def test_bits_follow_the_recipe_except_in_the_text_mlp() -> None:
    scheme = scheme_of(VIT_B_32, "paper-w4a8")
    bits = {
        layer: (scheme.weights[layer].grid.num_bits, scheme.inputs[layer].grid.num_bits) for layer in scheme.weights
    }
    assert {found for layer, found in bits.items() if layer.startswith("text.") and ".mlp." in layer} == {(8, 8)}
    assert {found for layer, found in bits.items() if not layer.startswith("text.") or ".mlp." not in layer} == {(4, 8)}
    assert not any(given.grid.symmetric for given in scheme.weights.values())

"""Integers back to a model: bit-identical, or refused."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from d4c import calibrate
from d4c.artifact import Artifact, read_artifact, write_artifact
from d4c.errors import ArtifactError
from d4c.images import ImageSet
from d4c.models import Clip, QuantizedClip, sites_of, wrap
from d4c.models.folding import fold_batchnorm
from d4c.models.resnet import Bottleneck, ModifiedResNet
from d4c.package import freeze, thaw, thaw_integers
from d4c.quantizers.integer_layers import IntegerSum
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import Calibrate, Recipe, Rule, load_recipe

INPUTS = Recipe(
    "inputs", placement="inputs", attention="rules", weight_symmetric=False,
    rules=(
        Rule("*", weight_bits=4, activation_bits=6),
        Rule("*.blocks.*.attention.[qkv]", activation_granularity="channel"),
        Rule("*.mlp.fc2", activation_granularity="token"),
        Rule("text.blocks.*.mlp.*", weight_bits=8, activation_bits=8),
    ),
)  # fmt: skip
THREE = Recipe("three", activation_symmetric=True, rules=(Rule("*", weight_bits=3, activation_bits=4),))
RECIPES = [*(load_recipe(name) for name in ("w8a8", "w4a8", "w6a6", "w4", "w8")), INPUTS, THREE]


@pytest.fixture(params=["vit", "resnet"])
def clip(request: pytest.FixtureRequest) -> Clip:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return request.param


def wrapped(clip: Clip, recipe: Recipe, pixels: Tensor, ids: Tensor) -> QuantizedClip:
    folded = fold_batchnorm(clip)
    scheme = resolve_scheme(recipe, sites_of(folded))
    images = ImageSet.unlabelled(pixels, "p")
    return wrap(folded, scheme, calibrate.run(folded, images, ids, scheme, Calibrate(range="minmax")))


def artifact_of(quantized: QuantizedClip, recipe: Recipe, folder: Path = Path("out")) -> Artifact:
    arrays, config = freeze(quantized, recipe)
    manifest = {"format_version": 1, "source": quantized.source, "fingerprint": quantized.fingerprint, "seed": 0}
    manifest |= {"parameters": 1, "threads": 1, "prompts": {}, "versions": {}, "stages": {}}
    return Artifact(folder, arrays, config, "", manifest, quantized.preprocess, quantized.tokenizer)


def with_whole_biases(quantized: QuantizedClip) -> QuantizedClip:
    """Biases rounded to whole multiples of input scale x weight scale, as integer kernels add them."""
    rounded = copy.deepcopy(quantized)
    for layer, site in sites_of(quantized).inputs.items():
        module = rounded.get_submodule(layer)
        if module.bias is not None:
            s_a, s_w = rounded.get_submodule(site).scale.numpy(), module.weight.scale.reshape(-1).numpy()
            unit = (s_a * s_w).astype(np.float64)  # the product is float32's
            codes = np.rint(module.bias.numpy().astype(np.float64) / unit)
            module.bias.copy_(torch.from_numpy(codes * unit))
    return rounded


def assert_identical(first: Clip, second: Clip, pixels: Tensor, ids: Tensor) -> None:
    assert torch.equal(first.encode_image(pixels), second.encode_image(pixels))
    assert torch.equal(first.encode_text(ids), second.encode_text(ids))


def test_embeddings_are_bit_identical(clip: Clip, recipe: Recipe, pixels: Tensor, tokens: Tensor) -> None:
    quantized = wrapped(clip, recipe, pixels, tokens)
    thawed = thaw(artifact_of(quantized, recipe))
    reference = with_whole_biases(quantized) if recipe.deployable else quantized
    assert_identical(thawed, reference, 1.5 * pixels, tokens.flip(0))
    assert not torch.equal(thawed.encode_image(pixels), clip.encode_image(pixels))
    assert not torch.equal(thawed.encode_text(tokens), clip.encode_text(tokens))


def test_what_was_thawed_freezes_to_the_same_again(clip: Clip, recipe: Recipe, pixels: Tensor, tokens: Tensor) -> None:
    first = artifact_of(wrapped(clip, recipe, pixels, tokens), recipe)
    second = artifact_of(thaw(first), recipe)
    assert first.config == second.config
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        assert array.dtype == second.arrays[name].dtype
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)


def test_the_way_over_a_folder_loses_nothing(clip: Clip, pixels: Tensor, tokens: Tensor, tmp_path: Path) -> None:
    recipe = load_recipe("w4a8")
    artifact = artifact_of(wrapped(clip, recipe, pixels, tokens), recipe, tmp_path / "out")
    write_artifact(artifact, tmp_path / "staging", {"stages": {}}, {})
    thawed, direct = thaw(read_artifact(tmp_path / "out")), thaw(artifact)
    assert_identical(thawed, direct, pixels, tokens)
    assert (thawed.source, thawed.fingerprint, thawed.config) == (clip.source, clip.fingerprint, direct.config)
    assert (thawed.preprocess, thawed.scheme) == (clip.preprocess, direct.scheme)
    assert torch.equal(thawed.logit_scale, clip.logit_scale)
    np.testing.assert_array_equal(thawed.tokenizer("word3 word90 other"), clip.tokenizer("word3 word90 other"))


def test_siglips_bias_on_logits_comes_back(vit: Clip, pixels: Tensor, tokens: Tensor) -> None:
    clip, recipe = copy.deepcopy(vit), load_recipe("w8a8")
    clip.logit_bias = torch.tensor(-10.0)
    thawed = thaw(artifact_of(wrapped(clip, recipe, pixels, tokens), recipe))
    assert thawed.logit_bias == -10
    assert thaw(artifact_of(wrapped(vit, recipe, pixels, tokens), recipe)).logit_bias is None


def test_a_thawed_model_shares_nothing_with_the_artifact(vit: Clip, pixels: Tensor, tokens: Tensor) -> None:
    recipe = load_recipe("w4a8")
    artifact = artifact_of(wrapped(vit, recipe, pixels, tokens), recipe)
    before = {name: array.copy() for name, array in artifact.arrays.items()}
    thawed = thaw(artifact)
    embeddings = thawed.encode_text(tokens)
    for tensor in thawed.state_dict().values():
        tensor.mul_(2)
    for name, array in artifact.arrays.items():
        np.testing.assert_array_equal(array, before[name])
    assert torch.equal(thaw(artifact).encode_text(tokens), embeddings)


Arrays = dict[str, Any]
Change = Callable[[Arrays, dict[str, Any]], object]
PACKED, WHOLE, SITE = "text.blocks.0.attention.q", "image.projection", "text.blocks.0.attention.input"


def formats(config: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = config["quantization_config"][kind]
    return found


MISFITS: dict[str, Change] = {
    "no weight": lambda arrays, _: arrays.pop(f"{WHOLE}.weight"),
    "no weight scale": lambda arrays, _: arrays.pop(f"{WHOLE}.weight_scale"),
    "no bias": lambda arrays, _: arrays.pop(f"{PACKED}.bias"),
    "no tensor scale": lambda arrays, _: arrays.pop(f"{SITE}.scale"),
    "no float parameter": lambda arrays, _: arrays.pop("image.norm_post.weight"),
    "no logit scale": lambda arrays, _: arrays.pop("logit_scale"),
    "codes cut off": lambda arrays, _: arrays.update({f"{WHOLE}.weight": arrays[f"{WHOLE}.weight"][:-1]}),
    "bytes cut off": lambda arrays, _: arrays.update({f"{PACKED}.weight": arrays[f"{PACKED}.weight"][:-1]}),
    "a byte a code": lambda _, config: formats(config, "weights")[PACKED].update(packed=False),
    "two codes a byte": lambda _, config: formats(config, "weights")[WHOLE].update(packed=True),
    "a scale too few": lambda arrays, _: arrays.update({f"{WHOLE}.weight_scale": arrays[f"{WHOLE}.weight_scale"][:-1]}),
    "a bias too few": lambda arrays, _: arrays.update({f"{PACKED}.bias": arrays[f"{PACKED}.bias"][:-1]}),
    "no positive scale": lambda arrays, _: arrays[f"{WHOLE}.weight_scale"].__setitem__(0, 0),
    "no finite scale": lambda arrays, _: arrays[f"{SITE}.scale"].fill(np.nan),
    "no whole zero point": lambda arrays, _: arrays[f"{SITE}.zero_point"].fill(0.5),
    "no zero point of so few bits": lambda arrays, _: arrays[f"{SITE}.zero_point"].fill(256),
    "an unknown layer": lambda _, config: formats(config, "weights").update(
        {"text.blocks.9.mlp.fc1": formats(config, "weights")["text.blocks.0.mlp.fc1"]}
    ),
    "an unknown tensor": lambda arrays, config: (
        formats(config, "tensors").update({"text.nowhere": formats(config, "tensors")[SITE]}),
        arrays.update({"text.nowhere.scale": np.ones(1, np.float32), "text.nowhere.zero_point": np.zeros(1)}),
    ),
    "a float weight of codes": lambda _, config: formats(config, "weights").pop(WHOLE),
    "a float input of an integer layer": lambda _, config: formats(config, "tensors").pop(SITE),
    "bits that are none": lambda _, config: formats(config, "tensors")[SITE].update(bits=1),
    "bits that are text": lambda _, config: formats(config, "tensors")[SITE].update(bits="eight"),
    "no bits": lambda _, config: formats(config, "tensors")[SITE].pop("bits"),
    "a list of formats": lambda _, config: config["quantization_config"].update(tensors=[SITE]),
    "no formats": lambda _, config: config["quantization_config"].pop("weights"),
    "no quantization": lambda _, config: config.pop("quantization_config"),
    "no architecture": lambda _, config: config.pop("architecture"),
    "another width": lambda _, config: config["architecture"]["text"].update(width=64),
    "another depth": lambda _, config: config["architecture"]["text"].update(layers=3),
    "an unknown tower": lambda _, config: config["architecture"]["image"].update(kind="mixer"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_tensors_that_do_not_fit_the_configuration_are_refused(
    what: str, vit: Clip, pixels: Tensor, tokens: Tensor
) -> None:
    recipe = load_recipe("w4a8")
    artifact = artifact_of(wrapped(vit, recipe, pixels, tokens), recipe)
    thaw(artifact)
    arrays, config = ({**artifact.arrays}, copy.deepcopy(dict(artifact.config)))
    MISFITS[what](arrays, config)
    with pytest.raises(ArtifactError, match=r"^out: "):
        thaw(dataclasses.replace(artifact, arrays=arrays, config=config))


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w6a6"])
def test_whole_numbers_agree_with_the_simulation(name: str, clip: Clip, pixels: Tensor, tokens: Tensor) -> None:
    recipe = load_recipe(name)
    artifact = artifact_of(wrapped(clip, recipe, pixels, tokens), recipe)
    simulation, integers = thaw(artifact), thaw_integers(artifact)
    kinds = {type(integers.get_submodule(layer)).__name__ for layer in sites_of(integers).inputs}
    assert kinds <= {"IntegerLinear", "IntegerConv2d"}
    sums = [block.sum for block in integers.modules() if isinstance(block, Bottleneck)]
    assert all(isinstance(found, IntegerSum) for found in sums)
    assert len(sums) == (4 if isinstance(clip.image, ModifiedResNet) else 0)
    for first, second in (
        (integers.encode_image(pixels), simulation.encode_image(pixels)),
        (integers.encode_text(tokens), simulation.encode_text(tokens)),
    ):
        assert (first - second).norm() <= 2e-3 * (second - second.mean(dim=0)).norm()  # a code off now and then


def test_simulations_have_no_whole_numbers(vit: Clip, pixels: Tensor, tokens: Tensor) -> None:
    recipe = load_recipe("w4a4")
    with pytest.raises(ArtifactError, match="recipe w4a4 has no integer form"):
        thaw_integers(artifact_of(wrapped(vit, recipe, pixels, tokens), recipe))

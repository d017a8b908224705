"""A recipe applied to the sites of one model: which tensor gets which format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from d4c.errors import RecipeError
from d4c.quantizers.grids import Granularity, IntegerGrid, PerChannel, PerTensor, PerToken, TensorFormat
from d4c.recipes import FLOAT_BITS, Recipe

GRANULARITIES: dict[str, Granularity] = {"tensor": PerTensor(), "channel": PerChannel(-1), "token": PerToken()}


@dataclass(frozen=True, slots=True)
class Sites:
    """The names that a scheme can speak of.

    Args:
        layers: every layer with a weight; embeddings: those of them that are tables; convolutions: those that are.
        tensors: every tensor site; attention_factors: those of them that are factors of attention's products.
        inputs: the tensor site each layer reads; embeddings read none.
    """

    layers: tuple[str, ...]
    embeddings: frozenset[str]
    tensors: tuple[str, ...]
    attention_factors: frozenset[str]
    inputs: Mapping[str, str]
    convolutions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Scheme:
    """Formats by site; what is not named stays float.

    Args:
        weights: by layer; tensors: by tensor site; inputs: by layer, for its input alone.
    """

    weights: Mapping[str, TensorFormat]
    tensors: Mapping[str, TensorFormat]
    inputs: Mapping[str, TensorFormat]

    def of_tower(self, tower: str) -> Scheme:
        """What of it lies in one tower, "image" or "text"; the other stays float."""
        parts = (self.weights, self.tensors, self.inputs)
        return Scheme(*({s: f for s, f in part.items() if s.startswith(f"{tower}.")} for part in parts))


def resolve_scheme(recipe: Recipe, sites: Sites) -> Scheme:
    """Apply the rules of a recipe to the sites of a model.

    Raises:
        RecipeError: a deployable recipe that would leave a quantized layer in float or the other way round, inputs
            quantized in front of float weights, or several scales for what a convolution reads.
    """
    _check_granularity(recipe, sites)
    weights = {}
    for layer in sites.layers:
        bits = recipe.bits(layer, "weight_bits")
        if bits != FLOAT_BITS:
            pair_safe = recipe.deployable and bits == 8 and layer not in sites.embeddings
            weights[layer] = TensorFormat(IntegerGrid(bits, recipe.weight_symmetric), PerChannel(0), pair_safe)
    inputs = _inputs(recipe, sites, weights) if recipe.placement == "inputs" else {}
    scheme = Scheme(weights, _tensors(recipe, sites), inputs)
    if recipe.deployable:
        _check_deployable(recipe, scheme, sites)
    return scheme


def _check_granularity(recipe: Recipe, sites: Sites) -> None:
    """Channels and tokens are counted along the last axis, which in front of a convolution is the image's width."""
    for layer in sorted(sites.convolutions & set(sites.inputs)):
        site = layer if recipe.placement == "inputs" else sites.inputs[layer]
        if recipe.granularity(site) != "tensor" and recipe.bits(site, "activation_bits") != FLOAT_BITS:
            raise RecipeError(
                f"recipe {recipe.name}: {site} has a scale for each {recipe.granularity(site)}, but {layer} is a "
                'convolution and takes one for all; add a rule with activation_granularity = "tensor"'
            )


def _tensors(recipe: Recipe, sites: Sites) -> dict[str, TensorFormat]:
    tensors = {}
    for site in sites.tensors:
        bits = recipe.bits(site, "activation_bits")
        if site in sites.attention_factors:
            bits = {"float": FLOAT_BITS, "int8": 8, "rules": bits}[recipe.attention]
            granularity: Granularity = PerTensor()
        elif recipe.placement == "inputs":
            continue
        else:
            granularity = GRANULARITIES[recipe.granularity(site)]
        if bits != FLOAT_BITS:
            tensors[site] = TensorFormat(IntegerGrid(bits, recipe.activation_symmetric), granularity)
    return tensors


def _inputs(recipe: Recipe, sites: Sites, weights: Mapping[str, TensorFormat]) -> dict[str, TensorFormat]:
    inputs = {}
    for layer in sites.inputs:
        bits = recipe.bits(layer, "activation_bits")
        if bits == FLOAT_BITS:
            continue
        if layer not in weights:
            raise RecipeError(
                f"recipe {recipe.name}: {layer} has float weights; give it weight_bits, or activation_bits = 32"
            )
        grid = IntegerGrid(bits, recipe.activation_symmetric)
        inputs[layer] = TensorFormat(grid, GRANULARITIES[recipe.granularity(layer)])
    return inputs


def _check_deployable(recipe: Recipe, scheme: Scheme, sites: Sites) -> None:
    for layer, site in sites.inputs.items():
        if (layer in scheme.weights) != (site in scheme.tensors):
            weight, tensor = ("integer", "float") if layer in scheme.weights else ("float", "integer")
            raise RecipeError(
                f"recipe {recipe.name}: {layer} has {weight} weights but its input {site} is {tensor}: "
                "no kernel multiplies the two; give both bits, or set deployable = false"
            )
    silent = sorted(set(sites.tensors) - sites.attention_factors - set(scheme.tensors))
    if silent:
        raise RecipeError(f"recipe {recipe.name}: {silent[0]} is float; a layer beside it would run in float")

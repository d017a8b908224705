"""Bits for each layer, so that a model fits a size."""

import random

import pytest

from d4c import calibrate, package
from d4c.models import Clip, sites_of
from d4c.models.folding import fold_batchnorm
from d4c.pipeline.budget import cheapest_within
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import load_recipe

RECIPE = load_recipe("w4a8")
HEADER = 500  # bytes by which headers of this many layers may differ


def size(clip: Clip, bits: dict[str, int]) -> int:
    return package.stored_bytes(clip, resolve_scheme(RECIPE.with_weight_bits(bits), sites_of(clip)))


@pytest.mark.parametrize("kind", ["tiny_clip", "tiny_resnet"])
def test_budgets_that_some_choice_meets_to_the_byte_are_never_exceeded(
    kind: str, request: pytest.FixtureRequest
) -> None:
    clip = fold_batchnorm(request.getfixturevalue(kind))
    layers, numbers = calibrate.choosable(resolve_scheme(RECIPE, sites_of(clip))), random.Random(0)
    for _ in range(40):
        budget = size(clip, {layer: numbers.choice(calibrate.CHOICES) for layer in layers})
        costs = {layer: {4: numbers.random(), 8: 0.0} for layer in layers}
        bits = cheapest_within(budget, clip, RECIPE, costs)
        cheaper = [clip.get_parameter(f"{n}.weight").numel() // 2 for n in layers if bits[n] == 4]
        assert 0 <= budget - size(clip, bits) < min(cheaper) + HEADER  # or another layer would have got 8 bits


@pytest.mark.parametrize("bits", calibrate.CHOICES)
def test_the_size_of_uniform_bits_gives_these(bits: int, tiny_resnet: Clip) -> None:
    clip = fold_batchnorm(tiny_resnet)
    uniform = dict.fromkeys(calibrate.choosable(resolve_scheme(RECIPE, sites_of(clip))), bits)
    assert cheapest_within(size(clip, uniform), clip, RECIPE, {n: {4: 1.0, 8: 0.0} for n in uniform}) == uniform

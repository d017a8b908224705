"""Bits for each layer, so that a model fits a size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from d4c import calibrate, package
from d4c.artifact import Work
from d4c.errors import RecipeError, UsageError
from d4c.models import Clip, sites_of
from d4c.pipeline.basis import fold
from d4c.pipeline.stages import Stages
from d4c.quantizers.scheme import Scheme, resolve_scheme
from d4c.recipes import Recipe, dump_recipe


def check_budget(clip: Clip, recipe: Recipe, budget: int) -> None:
    """Raise an error where no choice of bits can fit.

    Raises:
        RecipeError: the recipe's result has no file of the size that it stands for.
        UsageError: 4 bits everywhere are too large.
    """
    if recipe.runs_as == "simulation":
        raise RecipeError(f"recipe {recipe.name} is simulation only, and its size means nothing: no size budget")
    folded = fold(clip, recipe)
    least = package.stored_bytes(folded, uniform_schemes(folded, recipe)[min(calibrate.CHOICES)])
    if least > budget:
        raise UsageError(
            f"a size budget of {budget:,} bytes is too small: with 4 bits everywhere it takes {least:,} bytes"
        )


def bits_within(
    budget: int, folded: Clip, recipe: Recipe, images: Tensor, ids: Tensor, stages: Stages
) -> dict[str, int]:
    """The bits of each layer that lose least and fit.

    Args:
        budget: bytes; images, ids: what judges, [image, 3, size, size] and [text, token].
    """
    schemes = uniform_schemes(folded, recipe)

    def choose(work: Work) -> dict[str, int]:
        costs = calibrate.sensitivities(
            folded, schemes, images, ids, recipe.calibrate, work=work, ranks=stages.ranks
        )  # fmt: skip
        return cheapest_within(budget, folded, recipe, costs)

    return stages.run("bits", [dump_recipe(recipe), budget], choose, save=_save, recall=_recall)


def cheapest_within(
    budget: int, folded: Clip, recipe: Recipe, costs: Mapping[str, Mapping[int, float]]
) -> dict[str, int]:
    """The bits of each layer that cost least together in a file of at most `budget` bytes, which 4 bits fit.

    How long the file's header is hangs on all layers' bits together, by some hundred bytes: the choice is made for the
    shorter header of the uniform ones, and again with less room while its own file would be too large.

    Args:
        costs: by layer and bits.
    """
    schemes = uniform_schemes(folded, recipe)
    counts = {layer: folded.get_parameter(f"{layer}.weight").numel() for layer in costs}
    sizes = {n: {b: s.weights[n].code_bytes(counts[n]) for b, s in schemes.items()} for n in counts}
    codes = {bits: sum(size[bits] for size in sizes.values()) for bits in schemes}
    fewest = min(schemes)
    room = budget - min(package.stored_bytes(folded, scheme) - codes[bits] for bits, scheme in schemes.items())
    while room > codes[fewest]:
        chosen = calibrate.choose_bits(costs, sizes, room)
        over = package.stored_bytes(folded, _with_bits(folded, recipe, chosen)) - budget
        if over <= 0:
            return chosen
        room = sum(sizes[layer][bits] for layer, bits in chosen.items()) - over
    return dict.fromkeys(costs, fewest)


def uniform_schemes(clip: Clip, recipe: Recipe) -> dict[int, Scheme]:
    """By number of bits, what the model is if all layers that may be chosen for have so many."""
    layers = calibrate.choosable(resolve_scheme(recipe, sites_of(clip)))
    return {bits: _with_bits(clip, recipe, dict.fromkeys(layers, bits)) for bits in calibrate.CHOICES}


def _with_bits(clip: Clip, recipe: Recipe, bits: Mapping[str, int]) -> Scheme:
    return resolve_scheme(recipe.with_weight_bits(bits), sites_of(clip))


def _save(bits: dict[str, int], path: Path) -> None:
    path.write_text(json.dumps(bits), encoding="utf-8")


def _recall(path: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    return found

"""Does the text MLP need 8 bits? Its weights at fewer, everything else of the text tower as the recipe has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d4c import calibrate, reconstruct
from d4c.artifact.work import Report, Work
from d4c.evaluate.agreement import tower_error
from d4c.experiments.analyze.cells import Cell, Cells
from d4c.experiments.analyze.zero_shot import ZeroShot
from d4c.images import ImageSet
from d4c.models import Clip, QuantizedClip, TorchEncoder, sites_of, wrap
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import FLOAT_BITS, Recipe, Rule

MLP = "text.blocks.*.mlp.*"
METHODS = ("nearest", "learned")


@dataclasses.dataclass(frozen=True)
class TextStudy:
    """What the text tower is measured with.

    Args:
        clip: float, BatchNorm folded; ids: calibration texts; held_ids: texts that judge.
        images: any few, the stages want some; the image tower stays float.
        zero_shot: a data set for top-1, or None.
    """

    clip: Clip
    recipe: Recipe
    images: ImageSet
    ids: Tensor
    held_ids: Tensor
    iterations: int
    zero_shot: ZeroShot | None
    seed: int


def with_mlp_bits(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with other weight bits in the text MLP, as a simulation: no codes are pair-safe, any bits go.

    Where inputs are quantized layer by layer, a layer with float weights has none.
    """
    alone = bits == FLOAT_BITS and recipe.placement == "inputs"
    rule = Rule(MLP, weight_bits=bits, activation_bits=FLOAT_BITS if alone else None)
    return dataclasses.replace(recipe, deployable=False, rules=(*recipe.rules, rule))


def measure(
    study: TextStudy, bits: Sequence[int], cells: Cells, settings: Sequence[Any], report: Report
) -> dict[str, Any]:
    """Measure round-to-nearest and learned rounding at each number of bits, and with the MLP's weights in float.

    Returns:
        as JSON, by method and bits (`32` for float) the centred error of the held-out texts with cosines, for learned
        rounding the share of codes changed, and with a data set `acc1` with its paired difference from float.
    """
    found: dict[str, Any] = {method: {} for method in METHODS}
    widths = (FLOAT_BITS, *bits)
    wrapped = cache(partial(_wrapped, study))
    for i, num_bits in enumerate(widths):
        for j, method in enumerate(METHODS):
            used = [*settings, study.iterations] if method == "learned" else settings
            measure_one = partial(_measure_one, study, wrapped, num_bits, method, report)
            found[method][str(num_bits)] = cells.get("text-mlp", f"{num_bits}-{method}", used, measure_one)
            report("text-mlp", 2 * i + j + 1, 2 * len(widths))
    return found


def _wrapped(study: TextStudy, num_bits: int) -> QuantizedClip:
    """The text tower rounded to nearest."""
    clip, recipe = study.clip, with_mlp_bits(study.recipe, num_bits)
    scheme = resolve_scheme(recipe, sites_of(clip)).of_tower("text")
    few = study.images.take(slice(1))
    return wrap(clip, scheme, calibrate.run(clip, few, study.ids, scheme, recipe.calibrate, towers=["text"]))


def _measure_one(
    study: TextStudy, wrapped: Callable[[int], QuantizedClip], num_bits: int, method: str, report: Report
) -> Cell:
    quantized, few = wrapped(num_bits), study.images.take(slice(1))
    cell: Cell = {}
    if method == "learned":
        config = dataclasses.replace(study.recipe.reconstruct, method="adaround", iterations=study.iterations)
        quantized, units = reconstruct.run(
            study.clip, quantized, few, study.ids, few, study.held_ids, config, seed=study.seed,
            padding=study.recipe.calibrate.padding, towers=["text"], work=Work(None, report),
        )  # fmt: skip
        cell["codes_changed"] = float(np.mean([u.codes_changed for u in units]))
        cell["units_rejected"] = sum(not u.kept for u in units)
    return cell | _judge(study, quantized)


@torch.no_grad()
def _judge(study: TextStudy, quantized: QuantizedClip) -> Cell:
    reference, changed = TorchEncoder(study.clip), TorchEncoder(quantized)
    ids = study.held_ids.numpy()
    cell: Cell = {**asdict(tower_error(reference.encode_text(ids), changed.encode_text(ids)))}
    if study.zero_shot is not None:
        cell |= study.zero_shot.of_text(changed)
    return cell

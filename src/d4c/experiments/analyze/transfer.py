"""Transfer: calibrate on one set, judge on another; does it matter what the images show?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from d4c import calibrate
from d4c.artifact.work import Report
from d4c.evaluate.agreement import tower_error
from d4c.experiments.analyze.cells import Cell, Cells
from d4c.experiments.analyze.zero_shot import ZeroShot
from d4c.images import ImageSet
from d4c.models import Clip, TorchEncoder, sites_of, wrap
from d4c.pipeline.basis import fold
from d4c.quantizers.grids import AffineGrid
from d4c.quantizers.scheme import Scheme, resolve_scheme
from d4c.recipes import Recipe, dump_recipe


@dataclass(frozen=True)
class TransferStudy:
    """What image towers are measured with.

    Args:
        clip: float, as it was loaded: each recipe folds it or not; ids: calibration texts, which the stage wants though
            only images matter.
        sets: even images calibrate, odd ones judge.
    """

    clip: Clip
    sets: Mapping[str, ImageSet]
    ids: Tensor
    zero_shot: ZeroShot | None


def measure(
    study: TransferStudy, recipes: Mapping[str, Recipe], cells: Cells, settings: Sequence[Any], report: Report
) -> dict[str, Any]:
    """Round the image tower to nearest on ranges of each set, and judge it on all sets.

    Weights have the same grids whatever the set; room for int32 biases is not made.

    Returns:
        as JSON, by recipe and calibrating set: `errors`, the centred error by judging set, and with a data set `acc1`,
        text tower in float, with its paired difference from float.
    """
    found: dict[str, Any] = {}
    for i, (name, recipe) in enumerate(recipes.items()):
        found[name] = {}
        folded = dataclasses.replace(study, clip=fold(study.clip, recipe))
        weights = _weights_once(folded, recipe)
        for j, row in enumerate(study.sets):
            found[name][row] = cells.get(
                "transfer",
                f"{name}-{row}",
                [dump_recipe(recipe), *settings],
                partial(_measure_row, folded, recipe, row, weights),
            )
            report("transfer", i * len(study.sets) + j + 1, len(recipes) * len(study.sets))
    return found


def _weights_once(study: TransferStudy, recipe: Recipe) -> Callable[[], Mapping[str, AffineGrid]]:
    """The grids of a recipe's weights, placed when first wanted; images do not move them."""

    @cache
    def weights() -> Mapping[str, AffineGrid]:
        scheme = Scheme(resolve_scheme(recipe, sites_of(study.clip)).of_tower("image").weights, {}, {})
        few = next(iter(study.sets.values())).take(slice(1))
        return calibrate.run(study.clip, few, study.ids[:1], scheme, recipe.calibrate).weights

    return weights


@torch.no_grad()
def _measure_row(
    study: TransferStudy, recipe: Recipe, row: str, weights: Callable[[], Mapping[str, AffineGrid]]
) -> Cell:
    scheme = resolve_scheme(recipe, sites_of(study.clip)).of_tower("image")
    fitted = study.sets[row].take(slice(0, None, 2))
    activations = Scheme({}, scheme.tensors, scheme.inputs)
    ranges = calibrate.run(study.clip, fitted, study.ids[:1], activations, recipe.calibrate)
    quantized = wrap(study.clip, scheme, dataclasses.replace(ranges, weights=weights()))
    encoders = (TorchEncoder(study.clip), TorchEncoder(quantized))
    errors = {}
    for name, images in study.sets.items():
        pixels = images.pixels[1::2].numpy()
        errors[name] = asdict(tower_error(*(encoder.encode_image(pixels) for encoder in encoders)))["centred_error"]
    cell: Cell = {"errors": errors}
    if study.zero_shot is not None:
        cell |= study.zero_shot.of_image(encoders[1])
    return cell


def relative_to_own(errors: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Each error over what calibrating on the judging set itself gives, e_row,col / e_col,col.

    Args:
        errors: by calibrating and judging set; 1 on the diagonal.
    """
    return {row: {col: e / errors[col][col] for col, e in by_col.items()} for row, by_col in errors.items()}

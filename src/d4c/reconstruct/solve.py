"""Solve one unit in closed form: sum up what it reads, choose how far to trust it, round, judge on held-out inputs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d4c.quantizers.closed_form import Factor, IntegerWeight, WeightForm, nearest, refine, ridge_move, solve
from d4c.quantizers.grids import AffineGrid
from d4c.quantizers.moments import Moments, merge_all
from d4c.reconstruct.learned import Learned
from d4c.reconstruct.rows import rows_read
from d4c.reconstruct.units import SharedInput, Unit

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
STEPS = (0.0, 0.5, 1.0)
ROWS_TRIED = 64  # of each layer, for the choice among them
TOKENS_PER_COLUMN = 16
BIAS_BITS = 30  # as in calibration: |bias code| < 2^30


@dataclass(frozen=True)
class Batch:
    """What a unit reads for some samples.

    Args:
        x: in the float stream; quantized: in the quantized stream, in front of the unit's own quantizer.
        token_weight: [sample, token], or None where all count alike.
    """

    x: Tensor
    quantized: Tensor
    token_weight: Tensor | None


@dataclass(frozen=True)
class Solution:
    """How a unit was solved.

    Args:
        ridge, step: λ and α, chosen on samples that the trial was not fitted to.
        nearest_error, error: on held-out samples, of rounding to nearest and of this.
    """

    learned: Learned
    ridge: float
    step: float
    nearest_error: float
    error: float
    codes_changed: float


@torch.no_grad()
def solve_unit(
    unit: Unit,
    fitted: Iterable[Batch],
    held: Iterable[Batch],
    samples: int,
    refits: int,
    *,
    input_scale: Tensor | None,
    generator: torch.Generator,
) -> Solution:
    """Choose codes, scales and biases of all layers of a unit; the unit itself is not changed.

    Ridge and step are chosen by fitting the first three quarters of the batches and judging on the last; the result is
    fitted to all.

    Args:
        fitted, held: batches to fit to, and to judge by; samples: how many there are in `fitted`.
        refits: how often codes are polished and scales refitted; 0 leaves both as they are.
        input_scale: of the integer tensor that the unit reads, so that biases fit beside it; None where it is float.
        generator: on the CPU, for which rows of large feature maps are looked at.
    """
    weight = torch.cat([unit.float_weight(site).flatten(1) for site in unit.weights])  # [out of all layers, in]
    most = max(1, -(-TOKENS_PER_COLUMN * weight.shape[1] // samples))
    layers = _layers(unit, input_scale)
    judge = merge_all((_moments(unit, weight, batch, most, generator) for batch in held), weight)
    parts = (_moments(unit, weight, batch, most, generator) for batch in fitted)
    cut = 3 * len(batches(samples)) // 4
    moments = merge_all(itertools.islice(parts, max(1, cut)), weight)
    tried_on = merge_all(parts, weight) if cut else judge
    ridge, step = choose(layers, weight, moments, tried_on)
    if cut:
        moments = moments.merge(tried_on, weight)
    del tried_on
    factor = Factor.of(moments.gram, ridge)
    nearest_error = error = 0.0
    chosen = {}
    for site, (rows, form, affine) in layers.items():
        own, own_moments = weight[rows], _of_rows(moments, rows)
        errors = _Errors.of(own, _of_rows(judge, rows))
        target = own + step * ridge_move(own, own @ moments.cross, factor)
        candidates = [solve(own, target, own_moments, factor, form)]
        if refits:
            candidates.append(refine(candidates[0], own, target, own_moments, factor, form, refits))
        losses = [errors(candidate) for candidate in candidates]
        chosen[site] = candidates[losses.index(min(losses))]
        nearest_error += errors(nearest(own, affine, form, None))
        error += min(losses)
    return Solution(_learned(unit, chosen), ridge, step, nearest_error, error, _changed(layers, weight, chosen))


Layers = Mapping[str, tuple[slice, WeightForm, AffineGrid]]


def choose(layers: Layers, weight: Tensor, fitted: Moments, judge: Moments) -> tuple[float, float]:
    """Ridge and step with the least error on `judge`, tried on some rows of each layer."""
    errors: dict[tuple[float, float], float] = {}
    for ridge in RIDGES:
        factor = Factor.of(fitted.gram, ridge)
        for rows, form, _ in layers.values():
            some = torch.arange(rows.start, rows.stop, device=weight.device)[:: _stride(rows)]
            own, few = weight[some], dataclasses.replace(form, least_scale=None)
            move = ridge_move(own, own @ fitted.cross, factor)
            own_errors = _Errors.of(own, _of_rows(judge, some))
            for step in STEPS:
                found = solve(own, own + step * move, _of_rows(fitted, some), factor, few, num_shrinks=1)
                errors[ridge, step] = errors.get((ridge, step), 0.0) + own_errors(found)
    return min(errors, key=errors.__getitem__)


@dataclass(frozen=True)
class _Errors:
    """What integer weights of one layer lose on held-out tokens."""

    weight: Tensor
    judge: Moments
    crossed: Tensor

    @classmethod
    def of(cls, weight: Tensor, judge: Moments) -> _Errors:
        return cls(weight, judge, weight @ judge.cross)

    def __call__(self, found: IntegerWeight) -> float:
        return float(self.judge.error(self.weight, found.change(self.weight), found.bias_shift, self.crossed).sum())


def _stride(rows: slice) -> int:
    return max(1, -(-(rows.stop - rows.start) // ROWS_TRIED))


def _moments(unit: Unit, weight: Tensor, batch: Batch, most: int, generator: torch.Generator) -> Moments:
    site = next(iter(unit.weights))  # all layers of a unit read the same
    module = unit.module
    assert isinstance(module, SharedInput)
    quantized = unit.layer(site).input_quantizer(module.quantizer(batch.quantized))
    x, quantized, token_weight = rows_read(
        unit.float_layer(site), batch.x, quantized, batch.token_weight, most, generator
    )
    centred = all(unit.bias(site) is not None for site in unit.weights)
    return Moments.of(x, quantized, weight, token_weight, centred=centred)


def _layers(unit: Unit, input_scale: Tensor | None) -> Layers:
    """For each layer its rows in the unit's stacked weight, what its codes may be, and where they lie now."""
    layers, start = {}, 0
    for site in unit.weights:
        held, bias = unit.grid_weight(site), unit.bias(site)
        affine = AffineGrid(held.scale.reshape(-1, 1), held.zero_point.reshape(-1, 1), held.grid)
        form = WeightForm(held.values.shape, held.grid, site in unit.pair_safe, _least_scale(bias, input_scale))
        layers[site] = (slice(start, start + len(held.values)), form, affine)
        start += len(held.values)
    return layers


def _least_scale(bias: Tensor | None, input_scale: Tensor | None) -> Tensor | None:
    """Scales at which twice the bias fits 32 bits in units of input scale x weight scale, [out, 1]."""
    if bias is None or input_scale is None:
        return None
    return (2 * bias.abs() / (input_scale * 2**BIAS_BITS))[:, None]


def _of_rows(moments: Moments, rows: slice | Tensor) -> Moments:
    return dataclasses.replace(moments, lost=moments.lost[rows])


def _learned(unit: Unit, chosen: Mapping[str, IntegerWeight]) -> Learned:
    codes, grids, biases = {}, {}, {}
    for site, found in chosen.items():
        held, bias = unit.grid_weight(site), unit.bias(site)
        shape = held.scale.shape
        codes[site] = found.codes.reshape(held.values.shape)
        grids[site] = AffineGrid(found.affine.scale.reshape(shape), found.affine.zero_point.reshape(shape), held.grid)
        if bias is not None:
            biases[site] = bias + found.bias_shift
    return Learned(codes, {}, grids, biases)


def _changed(layers: Layers, weight: Tensor, chosen: Mapping[str, IntegerWeight]) -> float:
    """Share of codes that are not the float weight's nearest on the same grid."""
    changed = total = 0
    for site, (rows, form, _) in layers.items():
        plain = nearest(weight[rows], chosen[site].affine, form, None)
        changed += int((plain.codes != chosen[site].codes).sum())
        total += plain.codes.numel()
    return changed / total


def batches(stop: int, start: int = 0) -> Sequence[slice]:
    """Which samples from `start` to `stop` are summed together: 32, or fewer where that makes less than 4 batches."""
    size = max(1, min(32, -(-(stop - start) // 4)))
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]

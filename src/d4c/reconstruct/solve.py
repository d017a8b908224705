"""Solve one unit in closed form: sum up what it reads, choose how far to trust it, round, judge on held-out inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d4c.quantizers.closed_form import Factor, IntegerWeight, WeightForm, nearest, refine, ridge_move, solve
from d4c.quantizers.grids import AffineGrid
from d4c.quantizers.moments import Moments, merge_all
from d4c.ranks import ALONE, Ranks
from d4c.recipes.seeds import derive_seed
from d4c.reconstruct.learned import Learned
from d4c.reconstruct.rows import rows_read
from d4c.reconstruct.units import SharedInput, Unit

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
STEPS = (0.0, 0.5, 1.0)
AS_GOOD = 1.06  # times the least error
BLOCK_ROWS = 1024  # of a weight, solved together on a processor; a GPU takes all at once
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
class Split:
    """Which samples are looked at together, and which of these batches are for what; the same for all units of a tower.

    Args:
        batches: 32 samples each, or fewer where that would make less than four to fit to; fitted ones first.
        fitted: the first batches, to fit to with every ridge and step; tried_on: those by which one is chosen, and that
            are fitted to as well then; held: those that judge the result.
        samples: how many are fitted to, with those for the choice.
    """

    batches: tuple[slice, ...]
    fitted: range
    tried_on: range
    held: range
    samples: int

    @classmethod
    def of(cls, num_fitted: int, num: int) -> Split:
        """Of `num` samples, the last of which are held out."""
        fitted, held = _batches(0, num_fitted), _batches(num_fitted, num)
        cut, first_held = max(1, 3 * len(fitted) // 4), len(fitted)
        every = range(first_held + len(held))
        return cls((*fitted, *held), every[:cut], every[cut:first_held], every[first_held:], num_fitted)

    def mine(self, ranks: Ranks) -> set[int]:
        """The batches that this process runs."""
        parts = (self.fitted, self.tried_on, self.held)
        return {part[i] for part in parts for group in _groups(len(part), ranks) if group.is_mine for i in group.leaves}


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
    split: Split,
    batch: Callable[[int], Batch],
    refits: int,
    *,
    input_scale: Tensor | None,
    seed: int,
    ranks: Ranks = ALONE,
) -> Solution:
    """Choose codes, scales and biases of all layers of a unit; the unit itself is not changed.

    Args:
        batch: what the unit reads in a batch of `split`, by its number.
        refits: how often codes are polished and scales refitted; 0 leaves both as they are.
        input_scale: of the integer tensor that the unit reads, so that biases fit beside it; None where it is float.
        seed: for which rows of large feature maps are looked at.
    """
    weight = torch.cat([unit.float_weight(site).flatten(1) for site in unit.weights])  # [out of all layers, in]
    most = max(1, -(-TOKENS_PER_COLUMN * weight.shape[1] // split.samples))

    def sums(numbers: range) -> Moments:
        def make(number: int) -> Moments:
            generator = torch.Generator().manual_seed(derive_seed(seed, "rows", number))
            return _moments(unit, weight, batch(number), most, generator)

        return _merge_shared(make, numbers, weight, ranks)

    layers = _layers(unit, input_scale)
    judge, moments = sums(split.held), sums(split.fitted)
    tried_on = sums(split.tried_on) if split.tried_on else None
    ridge, step = choose(layers, weight, moments, tried_on or judge, ranks)
    if tried_on is not None:
        moments = moments.merge(tried_on, weight)
    del tried_on
    factor = Factor.of(moments.gram, ridge)
    nearest_error = error = 0.0
    chosen = {}
    for site, (rows, form, affine) in layers.items():
        whole, own_judge, own = weight[rows], _of_rows(judge, rows), _of_rows(moments, rows)
        candidates, losses, plain = _candidates(whole, own, own_judge, factor, form, affine, step, refits, ranks)
        chosen[site] = candidates[losses.index(min(losses))]
        nearest_error, error = nearest_error + plain, error + min(losses)
    return Solution(_learned(unit, chosen), ridge, step, nearest_error, error, _changed(layers, weight, chosen))


def _candidates(
    weight: Tensor, moments: Moments, judge: Moments, factor: Factor, form: WeightForm, affine: AffineGrid,
    step: float, refits: int, ranks: Ranks,
) -> tuple[list[IntegerWeight], list[float], float]:  # fmt: skip
    """A layer's integer weights before and after refinement, what each loses, and what rounding to nearest does.

    Rows do not depend on each other: they are solved in blocks whose height is always the same.
    """
    height = BLOCK_ROWS if weight.device.type == "cpu" else len(weight)
    blocks = [slice(i, min(i + height, len(weight))) for i in range(0, len(weight), height)]
    mine = {}
    for number in ranks.share(len(blocks)):
        rows = blocks[number]
        own, own_moments, part = weight[rows], _of_rows(moments, rows), form.rows(rows)
        errors = _Errors.of(own, _of_rows(judge, rows))
        target = own + step * ridge_move(own, own @ moments.cross, factor)
        found = [solve(own, target, own_moments, factor, part)]
        if refits:
            found.append(refine(found[0], own, target, own_moments, factor, part, refits))
        before = nearest(own, AffineGrid(affine.scale[rows], affine.zero_point[rows], affine.grid), part, None)
        losses = torch.tensor([errors(some) for some in (before, *found)], dtype=torch.float64)
        mine[number] = [losses, *(tensor for some in found for tensor in some.tensors())]
    collected = ranks.collect(mine, len(blocks))
    plain, *sums = torch.stack([part[0] for part in collected]).sum(dim=0).tolist()
    columns = [torch.cat(tensors) for tensors in zip(*(part[1:] for part in collected), strict=True)]
    candidates = [IntegerWeight.of(columns[i : i + 4], form.grid) for i in range(0, len(columns), 4)]
    return candidates, sums, plain


Layers = Mapping[str, tuple[slice, WeightForm, AffineGrid]]


def choose(
    layers: Layers, weight: Tensor, fitted: Moments, judge: Moments, ranks: Ranks = ALONE
) -> tuple[float, float]:
    """Ridge and step, tried on some rows of each layer and judged on `judge`."""
    alike: dict[WeightForm, list[Tensor]] = {}  # rows of layers whose codes may be the same are tried together
    for rows, form, _ in layers.values():
        some = torch.arange(rows.start, rows.stop, device=weight.device)[:: _stride(rows)]
        alike.setdefault(dataclasses.replace(form, least_scale=None), []).append(some)
    mine: dict[int, list[float]] = {}
    for number in ranks.share(len(RIDGES)):
        factor, errors = Factor.of(fitted.gram, RIDGES[number]), torch.zeros(len(STEPS), dtype=torch.float64)
        for form, parts in alike.items():
            some = torch.cat(parts)
            move = ridge_move(weight[some], weight[some] @ fitted.cross, factor)
            target = torch.cat([weight[some] + step * move for step in STEPS])
            some = some.repeat(len(STEPS))
            found = solve(weight[some], target, _of_rows(fitted, some), factor, form, num_shrinks=1)
            errors += _Errors.of(weight[some], _of_rows(judge, some)).by_row(found).reshape(len(STEPS), -1).sum(1).cpu()
        mine[number] = errors.tolist()
    by_ridge = ranks.collect_values(mine, len(RIDGES))
    choices = [(error, ridge, step) for ridge, errors in zip(RIDGES, by_ridge, strict=True)
               for step, error in zip(STEPS, errors, strict=True)]  # fmt: skip
    return strongest(choices)


def strongest(choices: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The strongest ridge that is as good as any, and its best step.

    Held-out samples are of the same kind as fitted ones, so they flatter a weak ridge, which fits what is peculiar to
    that kind; for the same reason the lasso's is chosen within one standard error of the best.

    Args:
        choices: error, ridge and step of each trial.
    """
    least = min(error for error, _, _ in choices)
    good = [choice for choice in choices if choice[0] <= AS_GOOD * least]
    _, ridge, step = max(good, key=lambda choice: (choice[1], -choice[0]))
    return ridge, step


@dataclass(frozen=True)
class _Errors:
    """What integer weights of one layer lose on held-out tokens."""

    weight: Tensor
    judge: Moments
    crossed: Tensor

    @classmethod
    def of(cls, weight: Tensor, judge: Moments) -> _Errors:
        """For a layer's weight, or some of its rows."""
        return cls(weight, judge, weight @ judge.cross)

    def by_row(self, found: IntegerWeight) -> Tensor:
        """Each output's, [out]."""
        return self.judge.error(self.weight, found.change(self.weight), found.bias_shift, self.crossed)

    def __call__(self, found: IntegerWeight) -> float:
        return float(self.by_row(found).sum())


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
    """Scales at which twice the bias fits 32 bits in units of input scale x weight scale, [out, 1].

    None where no integer kernel could add the bias: without one scale for all of the input.
    """
    if bias is None or input_scale is None or input_scale.ndim:
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
        # A row without weights keeps the scale that gives its bias enough bits.
        empty = (unit.float_weight(site).flatten(1) == 0).all(dim=1).reshape(shape)
        scale = torch.where(empty, held.scale, found.affine.scale.reshape(shape))
        grids[site] = AffineGrid(scale, found.affine.zero_point.reshape(shape), held.grid)
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


@dataclass(frozen=True)
class _Group:
    """Batches whose sums one process adds up: a whole subtree of `merge_all`'s tree over all of them."""

    leaves: range
    is_mine: bool


def _groups(count: int, ranks: Ranks) -> list[_Group]:
    size = 1
    while 2 * size * ranks.size <= count:
        size *= 2
    starts = range(0, count, size)
    return [_Group(range(s, min(s + size, count)), i % ranks.size == ranks.rank) for i, s in enumerate(starts)]


def _merge_shared(make: Callable[[int], Moments], numbers: range, weight: Tensor, ranks: Ranks) -> Moments:
    """The sums over some batches, whoever made them; bit for bit what one process would get."""
    groups = _groups(len(numbers), ranks)
    mine = {
        i: merge_all((make(numbers[leaf]) for leaf in group.leaves), weight).tensors()
        for i, group in enumerate(groups)
        if group.is_mine
    }
    return merge_all((Moments(*tensors) for tensors in ranks.collect(mine, len(groups))), weight)


def _batches(start: int, stop: int) -> list[slice]:
    size = max(1, min(32, -(-(stop - start) // 4)))
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]

"""The best integer weight for given moments, without gradients.

The target is a ridge regression of the float outputs on the quantized inputs, pulled towards the float weight:

    W* = W + α W D (H + λ̄ I)⁻¹,      λ̄ = λ tr(H) / K

Rounding goes column by column and lets every later column make up for the error so far. With H + λ̄ I = R Rᵀ, R upper
triangular, and B = R diag(R)⁻¹:

    t_j = w*_j + Σ_{i<j} (w*_i - q_i) B_ij,      q_j = round(t_j) on the grid

Sources: the rounding is LDLQ's (arXiv:2307.13304), with the codes of GPTQ (arXiv:2210.17323); the target that of
Qronos (arXiv:2505.11695), with the ridge of ERQ (arXiv:2407.06794) pulled towards W instead of 0; coordinate descent is
COMQ's (arXiv:2403.07134). The error of the result is Σ_j R_jj² (t_j - q_j)², row by row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from d4c.errors import CalibrationError
from d4c.quantizers.cuda_graphs import launch
from d4c.quantizers.functional import dequantize, quantize
from d4c.quantizers.grids import AffineGrid, IntegerGrid, cover, place_grid
from d4c.quantizers.moments import Moments
from d4c.quantizers.pair_safe import MAX_PAIR_SUM, clamp_pairs, column_pairs, pair_safe_span

BLOCK = 128  # columns between two matrix products
NUM_SHRINKS, LEAST_SHRINK = 40, 0.25
SETTLED = 1e-3  # share of codes below which another sweep is not worth its time
Bounds = Callable[[int], tuple[Tensor, Tensor]]  # lowest and highest code of a column, [out] each


@dataclass(frozen=True)
class Factor:
    """H + λ̄ I = R Rᵀ, rows and columns in the order in which they are rounded.

    Args:
        order: columns by falling diagonal of H, [in]; upper: R, [in, in]; ridged: H + λ̄ I in the columns' own order.
    """

    order: Tensor
    upper: Tensor
    ridged: Tensor

    @classmethod
    def of(cls, gram: Tensor, ridge: float) -> Factor:
        """Factorise; in float64, then with ten times the ridge, where that does not succeed.

        Args:
            gram: H, [in, in]; ridge: λ > 0, in units of H's mean diagonal.

        Raises:
            CalibrationError: H is not finite.
        """
        order = gram.diagonal().argsort(descending=True, stable=True)
        mean = gram.diagonal().mean()
        mean = torch.where(mean > 0, mean, torch.ones_like(mean))
        if not bool(gram.isfinite().all()):
            raise CalibrationError("inputs are not finite")
        while True:
            ridged = gram.clone()
            ridged.diagonal().add_(ridge * mean)
            backwards = ridged[order.flip(0)][:, order.flip(0)]
            for dtype in (gram.dtype, torch.float64):
                lower, failed = torch.linalg.cholesky_ex(backwards.to(dtype))
                if not bool(failed):
                    return cls(order, lower.flip(0, 1).to(gram.dtype), ridged)
            ridge *= 10

    def divide(self, rows: Tensor) -> Tensor:
        """X with X (H + λ̄ I) = rows, [row, in]."""
        solved = torch.linalg.solve_triangular(self.upper, rows[:, self.order].T, upper=True)
        solved = torch.linalg.solve_triangular(self.upper.T, solved, upper=False)  # [in, row]
        found = torch.empty_like(rows)
        found[:, self.order] = solved.T
        return found


def ridge_move(weight: Tensor, crossed: Tensor, factor: Factor) -> Tensor:
    """W* - W at α = 1, [out, in]; a row that would move further than its own length does not move.

    Args:
        weight: W, [out, in]; crossed: W D, [out, in].
    """
    move = factor.divide(crossed)
    return move * (move.norm(dim=1, keepdim=True) <= weight.norm(dim=1, keepdim=True))


def search_scales(target: Tensor, importance: Tensor, grid: IntegerGrid, num_shrinks: int = NUM_SHRINKS) -> AffineGrid:
    """For each row the shrink of its range, 1 to 0.25, with the least Σ_j h_j (w*_j - Q(w*_j))².

    Args:
        target: [out, in]; importance: h, the diagonal of H, [in]; num_shrinks: 1 takes the whole range.

    Returns:
        a grid with scale and zero point [out, 1].
    """
    low, high = target.amin(dim=1, keepdim=True), target.amax(dim=1, keepdim=True)  # [out, 1]
    scale, zero_point = cover(low, high, grid)
    least = torch.full_like(low, torch.inf)
    for shrink in torch.linspace(1, LEAST_SHRINK, num_shrinks).tolist():
        tried = cover(low * shrink, high * shrink, grid)  # a grid's own checks would make a GPU wait, 40 times
        rounded = dequantize(quantize(target, *tried, grid), *tried)
        error = (target - rounded).square_() @ importance[:, None]  # [out, 1]
        better = error < least
        least = torch.where(better, error, least)
        scale, zero_point = (torch.where(better, new, old) for new, old in zip(tried, (scale, zero_point), strict=True))
    return AffineGrid(scale, zero_point, grid)


def pair_safe_scales(target: Tensor, shape: torch.Size, grid: IntegerGrid) -> AffineGrid:
    """The finest scales at which rounding the target to nearest is pair-safe, [out, 1].

    Args:
        target: [out, in]; shape: that of the layer's weight.
    """
    span = pair_safe_span(target.reshape(shape))[:, None]
    return place_grid(-span, span, grid)


def with_room(affine: AffineGrid, least: Tensor | None) -> AffineGrid:
    """The same grid with scales of at least `least`, [out, 1], so that biases fit."""
    return affine if least is None else replace(affine, scale=torch.maximum(affine.scale, least))


@dataclass(frozen=True)
class Neighbours:
    """Which codes a kernel adds in 16 bits, by column: two of the same sign must not exceed 128."""

    columns: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shape: torch.Size) -> Neighbours:
        """Those of a weight [out, in, ..] flattened to [out, column]."""
        lists: list[list[int]] = [[] for _ in range(shape[1:].numel())]
        for pairs in column_pairs(shape):
            for a, b in pairs.tolist():
                lists[a].append(b)
                lists[b].append(a)
        return cls(tuple(tuple(found) for found in lists))

    def reordered(self, order: Sequence[int]) -> Neighbours:
        """The same columns once they stand in another order."""
        position = {column: i for i, column in enumerate(order)}
        return Neighbours(tuple(tuple(position[near] for near in self.columns[column]) for column in order))

    def bounds(self, column: int, codes: Sequence[Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest code that a column may take beside its neighbours, [out] each.

        Args:
            codes: by column, [out] each; columns without a code yet hold 0.
            low, high: of the grid, -128 to 127 at most, [out].
        """
        near = [codes[other] for other in self.columns[column]]
        if not near:
            return low, high
        lowest, highest = functools.reduce(torch.minimum, near), functools.reduce(torch.maximum, near)
        return torch.maximum(-MAX_PAIR_SUM - lowest, low), torch.minimum(MAX_PAIR_SUM - highest, high)

    def within(self, start: int, codes: Sequence[Tensor], low: Tensor, high: Tensor) -> Bounds:
        """The same for a block of columns, counted from `start`."""
        return lambda i: self.bounds(start + i, codes, low, high)


def round_with_feedback(
    target: Tensor, factor: Factor, affine: AffineGrid, neighbours: Neighbours | None = None, block: int = BLOCK
) -> Tensor:
    """Codes of W*, column by column, each making up for the errors of those before it, [out, in].

    Rows are looked at in steps of their grid, and columns in the factor's order.

    Args:
        target: W*, [out, in]; affine: scale and zero point [out, 1]; neighbours: of a pair-safe weight.
        block: columns between two matrix products; the result does not depend on it.
    """
    order = factor.order.tolist()
    unit_upper = factor.upper / factor.upper.diagonal()  # B
    wanted = (target / affine.scale).T[factor.order].contiguous()  # [in, out], as everything here
    errors = torch.zeros_like(wanted)
    centred = torch.zeros_like(wanted)  # q - z
    least, most = (bound - affine.zero_point[:, 0] for bound in (affine.grid.qmin, affine.grid.qmax))
    near = None if neighbours is None else neighbours.reordered(order)
    centred_at = centred.unbind()  # once, not column by column
    for start in range(0, len(order), block):
        part = slice(start, min(start + block, len(order)))
        carried = wanted[part] + unit_upper[:start, part].T @ errors[:start]
        changed, read = (centred[part], errors[part]), (carried, wanted[part], unit_upper[part, part], least, most)
        if near is None:
            launch(_round_block, changed, read)
        else:
            _round_block(*changed, *read, near.within(start, centred_at, least, most))
    codes = torch.empty_like(wanted)
    codes[factor.order] = centred
    return (codes.T + affine.zero_point).contiguous()


def _round_block(
    centred: Tensor, errors: Tensor, carried: Tensor, wanted: Tensor, coupling: Tensor, low: Tensor, high: Tensor,
    bounds: Bounds | None = None,
) -> None:  # fmt: skip
    """Round some columns in turn; `centred`, `errors` and `carried` change.

    Args:
        centred, errors: what comes of it; carried: with the errors of earlier blocks; wanted; all [column, out].
        coupling: B, [column, column]; low, high: of codes, [out], where no `bounds` tell them for each column.
    """
    columns = zip(carried.unbind(), centred.unbind(), wanted.unbind(), errors.unbind(), strict=True)
    for i, (column, code, want, error) in enumerate(columns):
        torch.round(column, out=code).clamp_(*(bounds(i) if bounds else (low, high)))
        torch.sub(want, code, out=error)
        if i + 1 < len(carried):
            carried[i + 1 :].addr_(coupling[i, i + 1 :], error)


def polish(
    codes: Tensor, target: Tensor, ridged: Tensor, affine: AffineGrid, neighbours: Neighbours | None, sweeps: int
) -> Tensor:
    """Coordinate descent over codes: each in turn moves to where the error is least, given all others; [out, in].

    No step raises tr((Q - W*) H_λ (Q - W*)ᵀ) of any row; rows are looked at in steps of their grid.

    Args:
        ridged: H_λ, [in, in]; sweeps: at most so many; they end when hardly a code changes.
    """
    centred = (codes - affine.zero_point).T.contiguous()  # q - z, [in, out], as everything here
    least, most = (bound - affine.zero_point[:, 0] for bound in (affine.grid.qmin, affine.grid.qmax))
    slope = ridged @ (centred - (target / affine.scale).T)  # half the gradient
    centred_at = centred.unbind()
    for _ in range(sweeps):
        before = centred.clone()
        for start in range(0, len(ridged), BLOCK):
            stop = min(start + BLOCK, len(ridged))
            part = slice(start, stop)
            moves = torch.empty_like(slope[part])
            changed, read = (centred[part], slope[part], moves), (ridged[part, part], least, most)
            if neighbours is None:
                launch(_polish_block, changed, read)
            else:
                _polish_block(*changed, *read, neighbours.within(start, centred_at, least, most))
            slope[:start].addmm_(ridged[:start, part], moves)
            slope[stop:].addmm_(ridged[stop:, part], moves)
        if float((centred != before).sum()) < SETTLED * codes.numel():
            break
    return (centred.T + affine.zero_point).contiguous()


def _polish_block(
    centred: Tensor, slope: Tensor, moves: Tensor, ridged: Tensor, low: Tensor, high: Tensor,
    bounds: Bounds | None = None,
) -> None:  # fmt: skip
    """Move some columns' codes in turn; the first three change.

    Args:
        centred, slope, moves: codes, half the error's gradient, and how far codes went, [column, out].
        ridged: [column, column]; low, high, bounds: as for `_round_block`.
    """
    curvature = ridged.diagonal().neg().unbind()
    columns = zip(slope.unbind(), centred.unbind(), moves.unbind(), ridged.unbind(), strict=True)
    for i, (half_gradient, code, move, coupling) in enumerate(columns):
        torch.div(half_gradient, curvature[i], out=move).round_()
        move.add_(code).clamp_(*(bounds(i) if bounds else (low, high))).sub_(code)  # as far as the grid allows
        code.add_(move)
        slope.addr_(coupling, move)


def refit_scales(codes: Tensor, target: Tensor, ridged: Tensor, affine: AffineGrid) -> AffineGrid:
    """The best scale of each row for codes that stay: s = (c H w*ᵀ) / (c H cᵀ), c = q - z (arXiv:2505.07004).

    Rows for which that is not positive and finite keep theirs.
    """
    centred = codes - affine.zero_point
    curved = centred @ ridged  # [out, in]
    scale = (curved * target).sum(dim=1, keepdim=True) / (curved * centred).sum(dim=1, keepdim=True)
    sound = scale.isfinite() & (scale > torch.finfo(scale.dtype).tiny)
    return replace(affine, scale=torch.where(sound, scale, affine.scale))


@dataclass(frozen=True)
class IntegerWeight:
    """A layer's weight in codes, and what its bias gains.

    Args:
        codes: [out, in]; affine: scale and zero point [out, 1]; bias_shift: [out].
    """

    codes: Tensor
    affine: AffineGrid
    bias_shift: Tensor

    @classmethod
    def of(cls, tensors: Sequence[Tensor], grid: IntegerGrid) -> IntegerWeight:
        """The inverse of `tensors`."""
        codes, scale, zero_point, bias_shift = tensors
        return cls(codes, AffineGrid(scale, zero_point, grid), bias_shift)

    def tensors(self) -> list[Tensor]:
        """Codes, scale, zero point and bias shift, each with rows along its first axis."""
        return [self.codes, self.affine.scale, self.affine.zero_point, self.bias_shift]

    def change(self, weight: Tensor) -> Tensor:
        """E = Ŵ - W, [out, in]."""
        return dequantize(self.codes, self.affine.scale, self.affine.zero_point) - weight


@dataclass(frozen=True)
class WeightForm:
    """What the codes of a layer may be.

    Args:
        shape: of the weight, [out, in] or [out, in, height, width]; least_scale: so that the bias fits, [out, 1].
    """

    shape: torch.Size
    grid: IntegerGrid
    pair_safe: bool
    least_scale: Tensor | None = None

    def rows(self, rows: slice) -> WeightForm:
        """That of some rows."""
        least = None if self.least_scale is None else self.least_scale[rows]
        return replace(self, shape=torch.Size([rows.stop - rows.start, *self.shape[1:]]), least_scale=least)

    def neighbours(self) -> Neighbours | None:
        """Of a pair-safe weight."""
        return Neighbours.of(self.shape) if self.pair_safe else None

    def place(self, target: Tensor, importance: Tensor, num_shrinks: int = NUM_SHRINKS) -> AffineGrid:
        """Scales for W*, [out, 1]; arguments as for `search_scales`."""
        if self.pair_safe:
            affine = pair_safe_scales(target, torch.Size([len(target), *self.shape[1:]]), self.grid)
        else:
            affine = search_scales(target, importance, self.grid, num_shrinks)
        return with_room(affine, self.least_scale)


def solve(
    weight: Tensor, target: Tensor, moments: Moments, factor: Factor, form: WeightForm, *,
    num_shrinks: int = NUM_SHRINKS,
) -> IntegerWeight:  # fmt: skip
    """Scales for a target, and rounding with feedback.

    Args:
        weight, target: W and W*, [out, in]; moments, factor: of what the layer reads.
    """
    affine = form.place(target, moments.gram.diagonal(), num_shrinks)
    codes = round_with_feedback(target, factor, affine, form.neighbours())
    return _with_bias(codes, affine, weight, moments)


def refine(
    found: IntegerWeight, weight: Tensor, target: Tensor, moments: Moments, factor: Factor, form: WeightForm,
    refits: int,
) -> IntegerWeight:  # fmt: skip
    """Polish the codes and refit their scales in turn, then polish once more; arguments as for `solve`."""
    neighbours = form.neighbours()
    codes, affine = found.codes, found.affine
    for _ in range(refits):
        codes = polish(codes, target, factor.ridged, affine, neighbours, sweeps=2)
        affine = with_room(refit_scales(codes, target, factor.ridged, affine), form.least_scale)
    return _with_bias(polish(codes, target, factor.ridged, affine, neighbours, sweeps=2), affine, weight, moments)


def nearest(weight: Tensor, affine: AffineGrid, form: WeightForm, moments: Moments | None) -> IntegerWeight:
    """The weight rounded to nearest; its bias corrected where moments are given."""
    codes = quantize(weight, affine.scale, affine.zero_point, affine.grid)
    if form.pair_safe:
        codes = clamp_pairs(codes.reshape(form.shape)).reshape(codes.shape)
    if moments is None:
        return IntegerWeight(codes, affine, torch.zeros_like(weight[:, 0]))
    return _with_bias(codes, affine, weight, moments)


def _with_bias(codes: Tensor, affine: AffineGrid, weight: Tensor, moments: Moments) -> IntegerWeight:
    change = dequantize(codes, affine.scale, affine.zero_point) - weight
    return IntegerWeight(codes, affine, moments.bias_shift(weight, change))

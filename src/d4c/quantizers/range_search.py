"""Choosing the range of a grid: min-max, and the L_p search by brute force and by histogram.

Everything works on rows: values that share one scale. The search is that of QDrop and of the D4C paper: among ranges
shrunk from the min-max range, and, where values have both signs and the grid is asymmetric, shifted by every zero
point, take the first that minimises

    mean_i |x_i - fake_quantize(x_i)|^p,    p = 2.4

`output_range` looks at the same candidates with the eyes of the layers that read the tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from d4c.quantizers.grids import AffineGrid, IntegerGrid, place_grid

LP_EXPONENT = 2.4
NUM_SHRINKS = 100
SHORTLIST = 3  # candidates that are scored exactly
FINE_BINS = 2**16
NUM_BINS, COARSE_BINS = 2048, 512
CHUNK = 2**22  # values held at once while candidates are scored
ROWS_AT_ONCE = 64  # whose fine bins are held at once on a GPU


def minmax_range(rows: Tensor, grid: IntegerGrid) -> AffineGrid:
    """Cover every value.

    Args:
        rows: [row, value].

    Returns:
        a grid with scale and zero point [row, 1].
    """
    return place_grid(rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True), grid)


def lp_range_brute_force(rows: Tensor, grid: IntegerGrid, p: float = LP_EXPONENT) -> AffineGrid:
    """Score every candidate on every value; the oracle of `lp_range`, 25,600 passes at 8 bits.

    Args:
        rows: [row, value].

    Returns:
        a grid with scale and zero point [row, 1].
    """
    low, high = candidates(rows, grid)
    scores = lp_scores(rows, torch.ones_like(rows), low, high, grid, p)
    return _take(low, high, scores.argmin(dim=1, keepdim=True), grid)


def lp_range(rows: Tensor, grid: IntegerGrid, p: float = LP_EXPONENT) -> AffineGrid:
    """Score candidates on a histogram, coarse to fine, and the best few again on every value.

    Args:
        rows: [row, value].

    Returns:
        a grid with scale and zero point [row, 1].
    """
    low, high = _shortlist(rows, None, grid, p)
    scores = lp_scores(rows, torch.ones_like(rows), low, high, grid, p)
    return _take(low, high, scores.argmin(dim=1, keepdim=True), grid)


def output_range(
    values: Tensor, weights: Tensor, grid: IntegerGrid, output_error: Callable[[AffineGrid], Tensor]
) -> AffineGrid:
    """The range that costs the layers behind a tensor least.

    A value that is off by e moves the outputs of its readers by e² ‖W_:,j‖² in all, if errors are independent: so
    candidates are scored on a histogram of values weighted like that, and the best few by what they do to the outputs,
    because errors of clipping go together.

    Args:
        values: of the tensor, any shape; weights: >= 0, of each value, ‖W_:,j‖² over all readers; broadcastable.
        output_error: the squared error of the readers' outputs with a grid in front, a scalar.

    Returns:
        a grid with scale and zero point [].
    """
    rows, row_weights = values.reshape(1, -1), weights.expand_as(values).reshape(1, -1)
    low, high = _shortlist(rows, row_weights, grid, 2.0)  # [1, candidate]
    placed = [place_grid(low[0, i], high[0, i], grid) for i in range(low.shape[1])]
    errors = torch.stack([output_error(affine) for affine in placed])
    return placed[int(errors.argmin())]


def _shortlist(
    rows: Tensor, weights: Tensor | None, grid: IntegerGrid, p: float, count: int = SHORTLIST
) -> tuple[Tensor, Tensor]:
    """The ranges that look best on a histogram, low and high, each [row, candidate]."""
    histogram = Histogram.of(rows, weights)
    low, high = candidates(rows, grid)
    if low.shape[1] > NUM_SHRINKS:
        low, high = _coarse_to_fine(Histogram.of(rows, weights, COARSE_BINS), low, high, grid, p)
    scores = lp_scores(histogram.centers, histogram.counts, low, high, grid, p)
    best = scores.topk(min(count, scores.shape[1]), dim=1, largest=False).indices  # [row, candidate]
    return low.expand_as(scores).gather(1, best), high.expand_as(scores).gather(1, best)


def candidates(rows: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
    """All ranges of the search, in its order.

    One-sidedness is judged on all rows together. Values of one sign, or a symmetric grid: 100 shrinks of the largest
    magnitude. Both signs on an asymmetric grid: 100 shrinks of the span x every zero point.

    Args:
        rows: [row, value].

    Returns:
        low <= 0 and high >= 0, each [row, candidate].
    """
    minimum, maximum = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)  # [row, 1]
    shrink = torch.arange(1, NUM_SHRINKS + 1, device=rows.device, dtype=torch.float32) / NUM_SHRINKS  # [shrink]
    two_sided = bool(minimum.min() < 0) and bool(maximum.max() > 0)
    if two_sided and not grid.symmetric:
        span = (maximum.clamp(min=0) - minimum.clamp(max=0)) * shrink  # [row, shrink]
        zero_point = torch.arange(grid.qmax + 1, device=rows.device, dtype=torch.float32)  # [zero]
        low = -(span / grid.qmax)[:, :, None] * zero_point  # [row, shrink, zero]
        return low.flatten(1), (span[:, :, None] + low).flatten(1)
    reach = torch.maximum(minimum.abs(), maximum.abs()) * shrink  # [row, shrink]
    none = torch.zeros_like(reach)
    if grid.symmetric:
        return -reach, reach
    return (none, reach) if bool(minimum.min() >= 0) else (-reach, none)


def lp_scores(values: Tensor, weights: Tensor, low: Tensor, high: Tensor, grid: IntegerGrid, p: float) -> Tensor:
    """sum_i w_i |x_i - fake_quantize(x_i; low, high)|^p / sum_i w_i for every candidate of every row.

    Args:
        values, weights: [row, value]; low, high: [row, candidate].

    Returns:
        [row, candidate].
    """
    affine = place_grid(low, high, grid)
    scale, zero_point = affine.scale, affine.zero_point  # [row, candidate]
    chunk = max(1, CHUNK // max(1, values.numel()))
    total = weights.sum(dim=1, keepdim=True)
    parts = []
    for s, z in zip(scale.split(chunk, dim=1), zero_point.split(chunk, dim=1), strict=True):
        s, z = s[:, :, None], z[:, :, None]  # [row, candidate, 1]
        codes = (values[:, None, :] / s).round_().clamp_(grid.qmin - z, grid.qmax - z)  # [row, candidate, value]
        error = codes.mul_(s).sub_(values[:, None, :]).abs_().log2_().mul_(p).exp2_()  # |e|^p, faster than pow
        parts.append((error @ weights[:, :, None])[:, :, 0] / total)
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Histogram:
    """Rows summarised by bins that are fine both where values are dense and along the whole range.

    Args:
        centers: mean of the values in each bin, [row, bin]; counts: how many, or what they weigh, [row, bin].
    """

    centers: Tensor
    counts: Tensor

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None = None, num_bins: int = NUM_BINS) -> Histogram:
        """Summarise rows [row, value], of the same weight or with weights [row, value].

        Rows with fewer values than bins stay as they are. 65,536 equal bins are merged to at most `num_bins`, half of
        whose edges are equally spaced and half of which hold equally much.
        """
        if rows.shape[1] <= num_bins:
            return cls(rows, torch.ones_like(rows) if weights is None else weights)
        at_once = 1 if rows.device.type == "cpu" else ROWS_AT_ONCE  # one row's fine bins fit a processor's cache
        starts = range(0, len(rows), at_once)
        parts = [
            cls._merged(rows[i : i + at_once], None if weights is None else weights[i : i + at_once], num_bins)
            for i in starts
        ]
        widest = max(part.counts.shape[1] for part in parts)

        def joined(columns: list[Tensor]) -> Tensor:
            return torch.cat([torch.nn.functional.pad(x, (0, widest - x.shape[1])) for x in columns])

        return cls(joined([part.centers for part in parts]), joined([part.counts for part in parts]))

    @classmethod
    def _merged(cls, values: Tensor, weights: Tensor | None, num_bins: int) -> Histogram:
        device, (num_rows, _) = values.device, values.shape
        if device.type == "mps":  # which has no float64
            values, weights = values.cpu(), None if weights is None else weights.cpu()
        low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)  # [row, 1]
        width = ((high - low) / FINE_BINS).clamp(min=torch.finfo(torch.float32).tiny)
        fine = ((values - low) / width).long().clamp_(max=FINE_BINS - 1)  # [row, value]
        fine += FINE_BINS * torch.arange(num_rows, device=values.device)[:, None]

        def totals(x: Tensor | None) -> Tensor:
            """What falls into the fine bins up to each edge, [row, fine edge]."""
            x = None if x is None else x.reshape(-1)
            sums = torch.bincount(fine.reshape(-1), x, num_rows * FINE_BINS).double().reshape(num_rows, -1)
            return torch.nn.functional.pad(sums.cumsum(dim=1), (1, 0))

        counts = totals(None if weights is None else weights.double())
        sums = totals(values.double() if weights is None else values.double() * weights)
        share = torch.arange(1, num_bins // 2, device=values.device) / (num_bins // 2) * counts[:, -1:]  # [row, edge]
        dense = torch.searchsorted(counts[:, 1:].contiguous(), share) + 1
        spaced = torch.arange(0, FINE_BINS + 1, FINE_BINS // (num_bins // 2), device=values.device)
        edges = torch.cat([dense, spaced.expand(num_rows, -1)], dim=1).sort(dim=1).values
        count, total = (x.gather(1, edges).diff(dim=1) for x in (counts, sums))  # [row, bin]
        used = count > 0
        first = (~used).byte().argsort(dim=1, stable=True)[:, : int(used.sum(dim=1).max())]  # empty bins come last
        centers = torch.where(used, total / count.clamp(min=torch.finfo(count.dtype).tiny), 0)
        return cls(centers.gather(1, first).float().to(device), count.gather(1, first).float().to(device))


def _coarse_to_fine(
    histogram: Histogram, low: Tensor, high: Tensor, grid: IntegerGrid, p: float
) -> tuple[Tensor, Tensor]:
    """Keep the candidates around the best of a coarse subset; [row, candidate] in and out, order preserved."""
    zeros = grid.qmax + 1
    step = max(1, zeros // 32)
    shrinks = torch.arange(3, NUM_SHRINKS, 4, device=low.device)  # every fourth, the full range among them
    coarse = (shrinks[:, None] * zeros + torch.arange(0, zeros, step, device=low.device)).flatten()
    scores = lp_scores(histogram.centers, histogram.counts, low[:, coarse], high[:, coarse], grid, p)
    reach = max(2, step)  # a neighbour at least: another shrink may want another zero point
    best = coarse[scores.topk(4, dim=1, largest=False).indices]  # [row, best]
    shrink = best // zeros
    zero = best % zeros
    near_shrink = (shrink[:, :, None] + torch.arange(-3, 4, device=low.device)).clamp(0, NUM_SHRINKS - 1)
    near_zero = (zero[:, :, None] + torch.arange(1 - reach, reach, device=low.device)).clamp(0, zeros - 1)
    near = (near_shrink[:, :, :, None] * zeros + near_zero[:, :, None, :]).flatten(1).sort(dim=1).values
    return low.gather(1, near), high.gather(1, near)


def _take(low: Tensor, high: Tensor, index: Tensor, grid: IntegerGrid) -> AffineGrid:
    return place_grid(low.expand(len(index), -1).gather(1, index), high.expand(len(index), -1).gather(1, index), grid)

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from d4c.quantizers.functional import fake_quantize
from d4c.quantizers.grids import AffineGrid, IntegerGrid, place_grid
from d4c.quantizers.range_search import (
    Histogram,
    candidates,
    lp_range,
    lp_range_brute_force,
    minmax_range,
    output_range,
)

P = 2.4
KINDS = ("normal", "one-sided", "negative", "outliers", "one outlier", "heavy tail")


def draw(kind: str, num: int, seed: int = 0) -> Tensor:
    """[1, num]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, num, generator=generator)
    if kind == "outliers":
        x[:, : num // 100] *= 50
    if kind == "one outlier":
        x[:, 0] = 1000
    return {"one-sided": x.relu(), "negative": -x.abs(), "heavy tail": x**3}.get(kind, x)


def score(rows: Tensor, affine: AffineGrid) -> Tensor:
    """mean |x' - x|^2.4 of each row, [row]."""
    return (fake_quantize(rows, affine.scale, affine.zero_point, affine.grid) - rows).double().abs().pow(P).mean(dim=1)


def search(x: Tensor, num_bits: int, *, one_sided: bool) -> tuple[float, float, float]:
    """The search of QDrop and D4C (arXiv:2511.15411) in plain loops: best score, scale, zero point of x [value]."""
    levels = 2**num_bits - 1
    minimum, maximum = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    best = (1e10, 0.0, 0.0)
    for i in range(1, 101):
        if one_sided:
            reach = max(-minimum, maximum) * i / 100
            lows = torch.tensor([0.0 if minimum == 0 else -reach])
            highs = lows + reach
        else:
            delta = (maximum - minimum) * i / 100 / levels
            lows = -delta * torch.arange(levels + 1)  # every zero point
            highs = lows + (maximum - minimum) * i / 100
        scales = (highs - lows) / levels
        zeros = (-(lows / scales).round()).clamp(0, levels)
        codes = ((x / scales[:, None]).round() + zeros[:, None]).clamp(0, levels)  # [zero, value]
        scores = ((codes - zeros[:, None]) * scales[:, None] - x).abs().pow(P).mean(dim=1)
        at = int(scores.argmin())
        if scores[at] < best[0]:  # the first of equals stays
            best = (float(scores[at]), float(scales[at]), float(zeros[at]))
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_brute_force_is_the_plain_search(kind: str) -> None:
    x = draw(kind, 300)
    best, scale, zero_point = search(x[0], 4, one_sided=kind in ("one-sided", "negative"))
    affine = lp_range_brute_force(x, IntegerGrid(4, symmetric=False))
    assert affine.scale.item() == pytest.approx(scale, rel=1e-5)
    assert affine.zero_point.item() == zero_point
    assert score(x, affine).item() == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_lp_range_loses_at_most_one_percent_to_the_plain_search(kind: str, num_bits: int) -> None:
    x = draw(kind, 2500)  # more values than histogram bins
    best, _, _ = search(x[0], num_bits, one_sided=kind in ("one-sided", "negative"))
    assert score(x, lp_range(x, IntegerGrid(num_bits, symmetric=False))).item() <= 1.01 * best


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_symmetric_grid_takes_the_best_of_a_hundred_shrinks(kind: str, num_bits: int) -> None:
    x, grid = draw(kind, 2500), IntegerGrid(num_bits, symmetric=True)
    scores = []
    for i in range(1, 101):
        scale = x.abs().max() * i / 100 / grid.qmax
        scores.append(score(x, AffineGrid(scale.reshape(1, 1), torch.zeros(1, 1), grid)).item())
    assert score(x, lp_range(x, grid)).item() <= 1.01 * min(scores)
    assert score(x, lp_range_brute_force(x, grid)).item() == pytest.approx(min(scores), rel=1e-4)


@settings(deadline=None, max_examples=50)
@example(seed=383, num=2, kind="normal", shift=0.0, num_bits=7, symmetric=False)  # all error is that of the scale
@given(
    seed=st.integers(0, 2**31),
    num=st.sampled_from([1, 2, 7, 300, 2049, 6000]),
    kind=st.sampled_from(KINDS),
    shift=st.sampled_from([0.0, 0.3, -4.0, 50.0]),
    num_bits=st.integers(2, 8),
    symmetric=st.booleans(),
)
def test_lp_range_never_loses_to_minmax(
    seed: int, num: int, kind: str, shift: float, num_bits: int, symmetric: bool
) -> None:
    x, grid = draw(kind, num, seed) + shift, IntegerGrid(num_bits, symmetric)
    minmax = score(x, minmax_range(x, grid)).item() ** (1 / P)  # the mean L_p error, in units of x
    rounding = 4e-7 * x.abs().max().item()  # the same range has one scale as a candidate and another as min-max
    assert score(x, lp_range(x, grid)).item() ** (1 / P) <= minmax * (1 + 1e-6) + rounding


@pytest.mark.parametrize("symmetric", [True, False])
def test_minmax_covers_every_value(symmetric: bool) -> None:
    rows, grid = draw("outliers", 600).reshape(3, 200), IntegerGrid(6, symmetric)
    affine = minmax_range(rows, grid)
    reached = (torch.tensor([grid.qmin, grid.qmax]) - affine.zero_point) * affine.scale  # [row, 2]
    assert bool((reached[:, :1] <= rows.amin(dim=1, keepdim=True) + affine.scale / 2).all())
    assert bool((reached[:, 1:] >= rows.amax(dim=1, keepdim=True) - affine.scale / 2 * 1.001).all())


def test_rows_do_not_see_each_other() -> None:
    rows, grid = torch.cat([draw("normal", 3000), 1e-3 * draw("heavy tail", 3000)]), IntegerGrid(8, symmetric=False)
    both, alone = lp_range(rows, grid), [lp_range(row[None], grid) for row in rows]
    for i in range(2):
        assert both.scale[i] == alone[i].scale
        assert both.zero_point[i] == alone[i].zero_point


def test_one_sided_rows_of_either_sign_may_stand_together() -> None:
    # Judged together they are two-sided; the search over zero points contains what each row's own search finds.
    rows, grid = torch.cat([draw("one-sided", 300), draw("negative", 300)]), IntegerGrid(4, symmetric=False)
    together = lp_range(rows, grid)
    for i in range(2):
        _, scale, zero_point = search(rows[i], 4, one_sided=True)
        assert together.scale[i].item() == pytest.approx(scale, rel=1e-5)
        assert together.zero_point[i].item() == zero_point


@pytest.mark.parametrize("observe", [lp_range, lp_range_brute_force, minmax_range])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num", [1, 3000])
@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_constant_rows_are_exact_and_zeros_get_scale_one(
    observe: Callable[[Tensor, IntegerGrid], AffineGrid], symmetric: bool, num: int, value: float
) -> None:
    rows = torch.full((1, num), value)
    affine = observe(rows, IntegerGrid(4, symmetric))
    torch.testing.assert_close(fake_quantize(rows, affine.scale, affine.zero_point, affine.grid), rows)
    if value == 0:
        assert (affine.scale.item(), affine.zero_point.item()) == (1, 0)


def test_a_dead_row_among_living_ones_gets_scale_one_and_zero_codes() -> None:
    rows = torch.cat([draw("normal", 3000), torch.zeros(1, 3000)])
    affine = lp_range(rows, IntegerGrid(8, symmetric=False))
    assert affine.scale[1].item() == 1
    assert bool((fake_quantize(rows, affine.scale, affine.zero_point, affine.grid)[1] == 0).all())


def output_error(values: Tensor, weight: Tensor, affine: AffineGrid) -> Tensor:
    error = values - fake_quantize(values, affine.scale, affine.zero_point, affine.grid)
    return (error @ weight.T).square().sum()


def gelu_like(tokens: int, channels: int) -> Tensor:
    x = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(0))
    return 2 * x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize("num_bits", [3, 4, 6])
def test_a_range_by_output_error_comes_close_to_the_best_of_all_candidates(num_bits: int) -> None:
    values, grid = gelu_like(300, 24), IntegerGrid(num_bits, symmetric=False)
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 24)
    found = output_range(values, weight.square().sum(dim=0), grid, lambda a: output_error(values, weight, a))
    low, high = (x[0, :: max(1, x.shape[1] // 3000)] for x in candidates(values.reshape(1, -1), grid))
    every = [float(output_error(values, weight, place_grid(a, b, grid))) for a, b in zip(low, high, strict=True)]
    reached = float(output_error(values, weight, found))
    assert reached <= 1.05 * min(every)
    plain = lp_range(values.reshape(1, -1), grid)
    assert reached < float(output_error(values, weight, place_like(plain, grid)))


def place_like(affine: AffineGrid, grid: IntegerGrid) -> AffineGrid:
    return AffineGrid(affine.scale.reshape(()), affine.zero_point.reshape(()), grid)


def test_channels_that_nothing_reads_do_not_widen_the_range() -> None:
    values = gelu_like(200, 8)
    values[:, 3] *= 20
    weight = torch.ones(4, 8)
    weight[:, 3] = 0
    grid = IntegerGrid(4, symmetric=False)
    found = output_range(values, weight.square().sum(dim=0), grid, lambda a: output_error(values, weight, a))
    read = values[:, torch.arange(8) != 3]
    assert float(found.scale * grid.qmax) < 1.2 * float(read.max() - read.min())


def test_a_weighted_histogram_is_one_of_repeated_values() -> None:
    values = torch.randn(1, 5000, generator=torch.Generator().manual_seed(2))
    weights = torch.randint(0, 4, (1, 5000), generator=torch.Generator().manual_seed(3)).float()
    repeated = values[0].repeat_interleave(weights[0].long())[None]
    weighted, plain = Histogram.of(values, weights), Histogram.of(repeated)
    assert float(weighted.counts.sum()) == float(plain.counts.sum()) == repeated.shape[1]
    for moment in (1, 2):
        sums = [(h.centers**moment * h.counts).sum() for h in (weighted, plain)]
        torch.testing.assert_close(sums[0], sums[1], rtol=1e-3, atol=0.1)

"""Oracles for the closed form: exhaustive search, textbook GPTQ, and identities that hold exactly."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from d4c.errors import CalibrationError
from d4c.quantizers import closed_form
from d4c.quantizers.closed_form import (
    Factor,
    IntegerWeight,
    Neighbours,
    WeightForm,
    nearest,
    pair_safe_scales,
    polish,
    refit_scales,
    ridge_move,
    round_with_feedback,
    search_scales,
)
from d4c.quantizers.functional import dequantize, quantize
from d4c.quantizers.grids import AffineGrid, IntegerGrid
from d4c.quantizers.moments import Moments
from d4c.quantizers.pair_safe import column_pairs, is_pair_safe


class Problem:
    """A layer with correlated inputs and a drifting quantized stream, in float64."""

    def __init__(
        self, seed: int = 0, columns: int = 24, rows: int = 5, tokens: int = 200, bits: int = 3, drift: float = 0.2
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        mix = normal(columns, columns) * torch.arange(1, columns + 1) ** -0.5
        self.x = normal(tokens, columns) @ mix
        self.noisy = self.x + drift * normal(tokens, columns)
        self.weight = normal(rows, columns)
        self.grid = IntegerGrid(bits, symmetric=True)
        self.moments = Moments.of(self.x, self.noisy, self.weight, None, centred=True)
        self.factor = Factor.of(self.moments.gram, 0.01)
        self.form = WeightForm(self.weight.shape, self.grid, pair_safe=False)

    def loss(self, values: Tensor, target: Tensor) -> Tensor:
        """tr((Q - W*) H_λ (Q - W*)ᵀ), row by row."""
        error = values - target
        return ((error @ self.factor.ridged) * error).sum(dim=1)


def ridge_target(weight: Tensor, cross: Tensor, factor: Factor, step: float) -> Tensor:
    return weight + step * ridge_move(weight, weight @ cross, factor)


def solve(
    weight: Tensor, moments: Moments, factor: Factor, form: WeightForm, step: float, num_shrinks: int = 40
) -> IntegerWeight:
    target = ridge_target(weight, moments.cross, factor, step)
    return closed_form.solve(weight, target, moments, factor, form, num_shrinks=num_shrinks)


def refine(
    found: IntegerWeight, weight: Tensor, moments: Moments, factor: Factor, form: WeightForm, step: float, refits: int
) -> IntegerWeight:
    target = ridge_target(weight, moments.cross, factor, step)
    return closed_form.refine(found, weight, target, moments, factor, form, refits)


def values(codes: Tensor, affine: AffineGrid) -> Tensor:
    return dequantize(codes, affine.scale, affine.zero_point)


def test_the_factor_and_its_division() -> None:
    problem = Problem()
    factor, order = problem.factor, problem.factor.order
    torch.testing.assert_close(factor.upper @ factor.upper.T, factor.ridged[order][:, order])
    assert torch.equal(factor.upper, factor.upper.triu())
    assert bool((problem.moments.gram.diagonal()[order].diff() <= 0).all())
    torch.testing.assert_close(factor.divide(problem.weight) @ factor.ridged, problem.weight)


def test_rounding_is_close_to_the_best_of_all_codes_and_never_better() -> None:
    ratios: dict[str, list[float]] = {"nearest": [], "feedback": [], "polished": []}
    for seed in range(20):
        problem = Problem(seed, columns=5, rows=1, bits=2, drift=0.05)
        affine = search_scales(problem.weight, problem.moments.gram.diagonal(), problem.grid)
        every = torch.tensor(list(itertools.product(range(-2, 2), repeat=5)), dtype=torch.float64)  # [choice, in]
        best = float(problem.loss(values(every, affine), problem.weight).min())
        codes = round_with_feedback(problem.weight, problem.factor, affine)
        found = {
            "nearest": quantize(problem.weight, affine.scale, affine.zero_point, affine.grid),
            "feedback": codes,
            "polished": polish(codes, problem.weight, problem.factor.ridged, affine, None, sweeps=4),
        }
        for name, some in found.items():
            ratios[name].append(float(problem.loss(values(some, affine), problem.weight)) / best)
    assert all(ratio >= 1 - 1e-9 for found_ratios in ratios.values() for ratio in found_ratios)
    mean = {name: sum(r) / len(r) for name, r in ratios.items()}
    assert mean["polished"] <= mean["feedback"] < mean["nearest"]
    assert mean["polished"] < 1.06
    assert mean["nearest"] > 1.15


def test_the_loss_is_the_sum_of_what_each_column_was_off() -> None:
    problem = Problem()
    affine = search_scales(problem.weight, problem.moments.gram.diagonal(), problem.grid)
    rounded = values(round_with_feedback(problem.weight, problem.factor, affine), affine)
    order, upper = problem.factor.order, problem.factor.upper
    error = (problem.weight - rounded)[:, order]  # [out, in]
    unit = upper / upper.diagonal()
    carried = problem.weight[:, order] + error @ unit.triu(1)  # t
    off = (carried - rounded[:, order]).square() @ upper.diagonal().square()
    torch.testing.assert_close(off, problem.loss(rounded, problem.weight), rtol=1e-9, atol=1e-9)


def test_the_codes_are_those_of_textbook_gptq() -> None:
    problem = Problem()
    affine = search_scales(problem.weight, problem.moments.gram.diagonal(), problem.grid)
    order = problem.factor.order
    inverse = torch.linalg.inv(problem.factor.ridged[order][:, order])
    left, expected = problem.weight[:, order].clone(), torch.empty_like(problem.weight)
    for j in range(len(order)):
        code = quantize(left[:, j : j + 1], affine.scale, affine.zero_point, affine.grid)
        expected[:, order[j]] = code[:, 0]
        error = (left[:, j] - values(code, affine)[:, 0]) / inverse[0, 0]
        left[:, j + 1 :] -= error[:, None] * inverse[0, 1:]
        inverse = inverse[1:, 1:] - inverse[1:, :1] @ inverse[:1, 1:] / inverse[0, 0]
    assert torch.equal(round_with_feedback(problem.weight, problem.factor, affine), expected)


@pytest.mark.parametrize("block", [1, 3, 7, 24, 100])
def test_the_size_of_blocks_changes_nothing(block: int) -> None:
    problem = Problem()
    affine = search_scales(problem.weight, problem.moments.gram.diagonal(), problem.grid)
    whole = round_with_feedback(problem.weight, problem.factor, affine)
    assert torch.equal(round_with_feedback(problem.weight, problem.factor, affine, block=block), whole)


def test_blocks_can_be_replayed_as_recorded_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(columns=150)  # more than one block
    affine = search_scales(problem.weight, problem.moments.gram.diagonal(), problem.grid)

    def solved() -> tuple[Tensor, Tensor]:
        codes = round_with_feedback(problem.weight, problem.factor, affine)
        return codes, polish(codes, problem.weight, problem.factor.ridged, affine, None, sweeps=2)

    def on_tensors_of_its_own(function: Callable[..., None], changed: Sequence[Tensor], read: Sequence[Tensor]) -> None:
        function(*(torch.empty_like(tensor, device="meta") for tensor in (*changed, *read)))  # there are no values
        own = [tensor.clone() for tensor in (*changed, *read)]
        function(*own)
        for held, given in zip(own, changed, strict=False):
            given.copy_(held)

    expected = solved()
    monkeypatch.setattr(closed_form, "launch", on_tensors_of_its_own)
    for found, codes in zip(solved(), expected, strict=True):
        assert torch.equal(found, codes)


def test_the_order_in_which_columns_stand_changes_nothing() -> None:
    problem = Problem()
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    moments = Moments.of(
        problem.x[:, shuffled], problem.noisy[:, shuffled], problem.weight[:, shuffled], None, centred=True
    )
    ordinary = solve(problem.weight, problem.moments, problem.factor, problem.form, 1.0)
    other = solve(problem.weight[:, shuffled], moments, Factor.of(moments.gram, 0.01), problem.form, 1.0)
    assert torch.equal(other.codes, ordinary.codes[:, shuffled])


def test_without_drift_and_ridge_the_target_is_the_weight_and_the_bias_stays() -> None:
    problem = Problem(drift=0.0)
    factor = Factor.of(problem.moments.gram, 1e-9)
    target = ridge_target(problem.weight, problem.moments.cross, factor, 1.0)
    torch.testing.assert_close(target, problem.weight)
    shift = problem.moments.bias_shift(problem.weight, target - problem.weight)
    torch.testing.assert_close(shift, torch.zeros_like(shift), atol=1e-9, rtol=0)


def test_the_target_is_the_least_squares_solution_pulled_towards_the_weight() -> None:
    problem = Problem()
    target = ridge_target(problem.weight, problem.moments.cross, problem.factor, 1.0)
    ridge = 0.01 * problem.moments.gram.diagonal().mean()
    rows = torch.cat([problem.noisy - problem.noisy.mean(dim=0), ridge.sqrt() * torch.eye(24, dtype=torch.float64)])
    outputs = (problem.x - problem.x.mean(dim=0)) @ problem.weight.T
    wanted = torch.cat([outputs, ridge.sqrt() * problem.weight.T])
    torch.testing.assert_close(target, torch.linalg.lstsq(rows, wanted).solution.T)
    half = ridge_target(problem.weight, problem.moments.cross, problem.factor, 0.5)
    torch.testing.assert_close(half, (problem.weight + target) / 2)


def test_a_row_that_would_move_further_than_its_length_stays() -> None:
    problem = Problem()
    cross = problem.moments.cross * 1e3
    assert torch.equal(ridge_target(problem.weight, cross, problem.factor, 1.0), problem.weight)


def test_independent_inputs_are_rounded_to_nearest() -> None:
    problem = Problem()
    factor = Factor.of(torch.diag(torch.rand(24, dtype=torch.float64) + 0.1), 0.01)
    affine = search_scales(problem.weight, torch.ones(24, dtype=torch.float64), problem.grid)
    codes = quantize(problem.weight, affine.scale, affine.zero_point, affine.grid)
    assert torch.equal(round_with_feedback(problem.weight, factor, affine), codes)


def test_many_bits_lose_only_what_the_drift_costs() -> None:
    problem = Problem(bits=16)
    found = solve(problem.weight, problem.moments, problem.factor, problem.form, 1.0)
    target = ridge_target(problem.weight, problem.moments.cross, problem.factor, 1.0)
    change = target - problem.weight
    expected = problem.moments.error(problem.weight, change, problem.moments.bias_shift(problem.weight, change))
    torch.testing.assert_close(
        problem.moments.error(problem.weight, found.change(problem.weight), found.bias_shift),
        expected,
        rtol=1e-3,
        atol=0,
    )


def test_a_dead_column_is_rounded_to_nearest() -> None:
    problem = Problem()
    problem.noisy[:, 7] = problem.x[:, 7] = 0.5  # never moves: nothing is known of it
    moments = Moments.of(problem.x, problem.noisy, problem.weight, None, centred=True)
    found = solve(problem.weight, moments, Factor.of(moments.gram, 0.01), problem.form, 1.0)
    plain = quantize(problem.weight, found.affine.scale, found.affine.zero_point, problem.grid)
    assert torch.equal(found.codes[:, 7], plain[:, 7])
    assert not torch.equal(found.codes, plain)


def test_doubling_every_token_changes_nothing() -> None:
    problem = Problem()
    moments = Moments.of(problem.x.repeat(2, 1), problem.noisy.repeat(2, 1), problem.weight, None, centred=True)
    twice = solve(problem.weight, moments, Factor.of(moments.gram, 0.01), problem.form, 1.0)
    once = solve(problem.weight, problem.moments, problem.factor, problem.form, 1.0)
    assert torch.equal(twice.codes, once.codes)
    torch.testing.assert_close(twice.bias_shift, once.bias_shift)


def test_following_the_drift_helps_on_tokens_that_were_not_seen() -> None:
    errors: dict[str, float] = {"nearest": 0, "step 0": 0, "step 1": 0}
    for seed in range(5):
        problem = Problem(seed, columns=48, rows=16, tokens=2000, bits=4)
        fitted, other = (
            Moments.of(problem.x[part], problem.noisy[part], problem.weight, None, centred=True)
            for part in (slice(0, 1000), slice(1000, None))
        )
        factor = Factor.of(fitted.gram, 0.01)
        plain = search_scales(problem.weight, fitted.gram.diagonal(), problem.grid)
        found = {
            "nearest": nearest(problem.weight, plain, problem.form, fitted),
            "step 0": solve(problem.weight, fitted, factor, problem.form, 0.0),
            "step 1": solve(problem.weight, fitted, factor, problem.form, 1.0),
        }
        for name, some in found.items():
            errors[name] += float(other.error(problem.weight, some.change(problem.weight), some.bias_shift).sum())
    assert errors["step 1"] < errors["step 0"] < errors["nearest"]


@pytest.mark.parametrize("bits", [2, 4])
def test_polishing_never_raises_the_error_of_any_row_and_ends_where_no_single_step_helps(bits: int) -> None:
    problem = Problem(columns=8, rows=6, bits=bits)
    affine = search_scales(problem.weight, problem.moments.gram.diagonal(), problem.grid)
    codes = quantize(problem.weight, affine.scale, affine.zero_point, affine.grid)
    ridged = problem.factor.ridged
    before = problem.loss(values(codes, affine), problem.weight)
    for _ in range(4):
        codes = polish(codes, problem.weight, ridged, affine, None, sweeps=1)
        after = problem.loss(values(codes, affine), problem.weight)
        assert bool((after <= before + 1e-9).all())
        before = after
    codes = polish(codes, problem.weight, ridged, affine, None, sweeps=50)
    best = problem.loss(values(codes, affine), problem.weight)
    for column, step in itertools.product(range(8), (-1, 1)):
        other = codes.clone()
        other[:, column] = (other[:, column] + step).clamp(affine.grid.qmin, affine.grid.qmax)
        assert bool((problem.loss(values(other, affine), problem.weight) >= best - 1e-9).all())


def test_blocks_of_polishing_are_one_descent() -> None:
    problem = Problem(columns=300, rows=3, tokens=600, bits=3)  # more than two blocks
    affine = search_scales(problem.weight, problem.moments.gram.diagonal(), problem.grid)
    codes = quantize(problem.weight, affine.scale, affine.zero_point, affine.grid)
    ridged = problem.factor.ridged
    expected = codes.clone()
    for j in range(300):  # the definition, column by column
        slope = (values(expected, affine) - problem.weight) @ ridged[:, j]
        expected[:, j] = (expected[:, j] - (slope / (ridged[j, j] * affine.scale[:, 0])).round()).clamp(-4, 3)
    assert torch.equal(polish(codes, problem.weight, ridged, affine, None, sweeps=1), expected)


def test_a_refitted_scale_is_the_best_for_its_codes() -> None:
    problem = Problem()
    affine = search_scales(problem.weight, problem.moments.gram.diagonal(), problem.grid)
    codes = round_with_feedback(problem.weight, problem.factor, affine)
    refitted = refit_scales(codes, problem.weight, problem.factor.ridged, affine)
    best = problem.loss(values(codes, refitted), problem.weight)
    assert bool((best <= problem.loss(values(codes, affine), problem.weight)).all())
    for factor in (0.999, 1.001):
        scale = refitted.scale * factor
        worse = AffineGrid(scale, refitted.zero_point, refitted.grid)
        assert bool((problem.loss(values(codes, worse), problem.weight) > best).all())


def test_a_row_of_zeros_keeps_its_scale() -> None:
    problem = Problem()
    problem.weight[2] = 0
    affine = search_scales(problem.weight, problem.moments.gram.diagonal(), problem.grid)
    codes = round_with_feedback(problem.weight, problem.factor, affine)
    assert not bool(codes[2].any())
    assert float(refit_scales(codes, problem.weight, problem.factor.ridged, affine).scale[2]) == 1


@pytest.mark.parametrize("shape", [(5, 24), (5, 8, 1, 3), (5, 3, 2, 4)])
def test_eight_bits_stay_pair_safe_through_every_step(shape: tuple[int, ...]) -> None:
    problem = Problem(bits=8)
    problem.weight = 1 + 0.002 * problem.weight  # every pair of neighbours is close to the limit
    moments = Moments.of(problem.x, problem.noisy, problem.weight, None, centred=True)
    form = WeightForm(torch.Size(shape), problem.grid, pair_safe=True)
    factor = Factor.of(moments.gram, 0.01)
    found = solve(problem.weight, moments, factor, form, 0.0)
    polished = refine(found, problem.weight, moments, factor, form, 0.0, refits=2)
    free = round_with_feedback(problem.weight, factor, found.affine)
    assert not is_pair_safe(free.reshape(shape))  # the constraint is at work
    plain = nearest(problem.weight, pair_safe_scales(problem.weight, form.shape, problem.grid), form, moments)
    for some in (found, polished, plain):
        assert is_pair_safe(some.codes.reshape(shape))
    losses = [float(problem.loss(values(s.codes, s.affine), problem.weight).sum()) for s in (polished, found, plain)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_neighbours_are_those_of_both_runtimes() -> None:
    shape = torch.Size((4, 3, 1, 3))
    columns = Neighbours.of(shape).columns
    pairs = {tuple(pair) for found in column_pairs(shape) for pair in found.tolist()}
    listed = {(i, j) for i, row in enumerate(columns) for j in row}
    assert listed == pairs | {(b, a) for a, b in pairs}


def test_scales_leave_room_for_the_bias() -> None:
    problem = Problem()
    least = torch.full((5, 1), 10.0, dtype=torch.float64)
    form = WeightForm(problem.weight.shape, problem.grid, pair_safe=False, least_scale=least)
    found = solve(problem.weight, problem.moments, problem.factor, form, 1.0)
    assert bool((found.affine.scale == 10).all())
    assert bool((refine(found, problem.weight, problem.moments, problem.factor, form, 1.0, 1).affine.scale >= 10).all())


def test_searched_scales_are_no_worse_than_the_whole_range() -> None:
    problem = Problem(rows=40)
    problem.weight[:, 3] *= 6  # an outlier that a narrow range clips
    importance = problem.moments.gram.diagonal().clone()
    importance[3] = 1e-6
    whole, searched = (search_scales(problem.weight, importance, problem.grid, n) for n in (1, 40))

    def error(affine: AffineGrid) -> Tensor:
        codes = quantize(problem.weight, affine.scale, affine.zero_point, affine.grid)
        return (values(codes, affine) - problem.weight).square() @ importance

    assert bool((error(searched) <= error(whole)).all())
    assert bool((searched.scale < whole.scale).any())


def test_an_asymmetric_grid_is_used_to_both_ends() -> None:
    problem = Problem(columns=24, bits=4)
    grid = IntegerGrid(4, symmetric=False)
    form = WeightForm(problem.weight.shape, grid, pair_safe=False)
    found = solve(problem.weight + 1, problem.moments, problem.factor, form, 1.0, num_shrinks=1)
    assert float(found.codes.min()) == 0
    assert float(found.codes.max()) == 15


def test_singular_sums_are_solved_with_more_ridge() -> None:
    gram = torch.ones(40, 40)  # rank one
    factor = Factor.of(gram, 1e-12)
    assert bool(factor.upper.isfinite().all())
    assert bool(Factor.of(torch.zeros(4, 4), 0.1).upper.isfinite().all())
    with pytest.raises(CalibrationError, match="not finite"):
        Factor.of(torch.full((2, 2), torch.nan), 0.1)

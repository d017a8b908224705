import math

import pytest
import torch
from torch import Tensor

from d4c.quantizers.functional import fake_quantize
from d4c.quantizers.grids import AffineGrid, IntegerGrid
from d4c.reconstruct.adaround import (
    beta_at,
    hard_codes,
    initial_alpha,
    rectified_sigmoid,
    rounding_penalty,
    soft_weight,
    squared_error,
)

# σ(0) = 1/2, σ(ln 3) = 3/4, σ(±ln 11) = 11/12 and 1/12; h = 1.2 σ - 0.1
ALPHAS = torch.tensor([0.0, math.log(3), math.log(11), -math.log(11), 5.0, -5.0])
H = torch.tensor([0.5, 0.8, 1.0, 0.0, 1.0, 0.0])


def grid(symmetric: bool, num_bits: int = 4) -> AffineGrid:
    zero = 0.0 if symmetric else 5.0
    return AffineGrid(torch.tensor([[0.1], [0.3]]), torch.full((2, 1), zero), IntegerGrid(num_bits, symmetric))


def inside(affine: AffineGrid, num: int = 200) -> Tensor:
    """Random weights strictly within a grid, [2, num]."""
    u = torch.rand(2, num, generator=torch.Generator().manual_seed(0))
    low, high = (((q - affine.zero_point) * affine.scale) for q in (affine.grid.qmin, affine.grid.qmax))
    return low + u * (high - low)


def test_h_by_hand() -> None:
    torch.testing.assert_close(rectified_sigmoid(ALPHAS), H)


def test_alpha_starts_where_h_is_the_fraction() -> None:
    # w / s = 2.5, 1.8, -0.5, -1.2 have fractions .5, .8, .5, .8 above their floors; whole numbers give -ln 11.
    affine = AffineGrid(torch.tensor(0.5), torch.tensor(0.0), IntegerGrid(4, symmetric=True))
    alpha = initial_alpha(torch.tensor([1.25, 0.9, -0.25, -0.6, 1.5]), affine)
    expected = torch.tensor([0.0, math.log(3), 0.0, math.log(3), -math.log(11)])
    torch.testing.assert_close(alpha, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_soft_rounding_starts_at_the_weight_and_hard_rounding_at_the_nearest(symmetric: bool) -> None:
    affine = grid(symmetric)
    weight = inside(affine)
    alpha = initial_alpha(weight, affine)
    torch.testing.assert_close(soft_weight(weight, alpha, affine), weight)
    nearest = fake_quantize(weight, affine.scale, affine.zero_point, affine.grid)
    codes = hard_codes(weight, alpha, affine)
    torch.testing.assert_close((codes - affine.zero_point) * affine.scale, nearest)


def test_codes_go_down_or_up_and_stop_at_the_ends_of_the_grid() -> None:
    # s = 1, z = 1, 2 bits: floor + z + {0, 1} clamped to 0 .. 3, for w = -9.5, -0.5, 1.5, 9.5
    affine = AffineGrid(torch.tensor(1.0), torch.tensor(1.0), IntegerGrid(2, symmetric=False))
    weight = torch.tensor([-9.5, -0.5, 1.5, 9.5])
    assert hard_codes(weight, torch.full((4,), -0.1), affine).tolist() == [0, 0, 2, 3]
    assert hard_codes(weight, torch.zeros(4), affine).tolist() == [0, 1, 3, 3]
    half = soft_weight(weight, torch.zeros(4), affine)  # codes 0, .5, 2.5, 3, less 1
    assert half.tolist() == [-1.0, -0.5, 1.5, 2.0]


def test_the_gradient_reaches_alpha_only_where_the_grid_is_not_left() -> None:
    # dw'/dα = s 1.2 σ' with σ'(0) = 1/4 and σ'(ln 3) = 3/16
    affine = AffineGrid(torch.tensor(2.0), torch.tensor(0.0), IntegerGrid(4, symmetric=True))
    alpha = torch.tensor([0.0, math.log(3), 5.0, 0.0], requires_grad=True)
    soft_weight(torch.tensor([1.0, 1.0, 1.0, 99.0]), alpha, affine).sum().backward()
    torch.testing.assert_close(alpha.grad, torch.tensor([2 * 1.2 / 4, 2 * 1.2 * 3 / 16, 0.0, 0.0]))


@pytest.mark.parametrize("beta", [2.0, 11.0, 20.0])
def test_the_penalty_by_hand(beta: float) -> None:
    # |2h - 1| is 0, .6 and 1: 1 - 0^β = 1, 1 - .6^β, and 0 for what has decided
    assert rounding_penalty(ALPHAS[:1], beta).item() == pytest.approx(1)
    assert rounding_penalty(ALPHAS[1:2], beta).item() == pytest.approx(1 - 0.6**beta)
    assert rounding_penalty(torch.tensor([9.0, -9.0]), beta).item() == pytest.approx(0)
    assert rounding_penalty(torch.cat([ALPHAS[:2], ALPHAS[4:]]), beta).item() == pytest.approx(2 - 0.6**beta)


@pytest.mark.parametrize(
    ("step", "beta"), [(1, None), (3999, None), (4000, 20.0), (8000, 15.5), (12000, 11.0), (20000, 2.0)]
)
def test_beta_falls_linearly_after_the_warm_up(step: int, beta: float | None) -> None:
    # a fifth of 20,000 steps is 4,000; (8,000 - 4,000) / 16,000 of the way from 20 to 2 is 15.5
    assert beta_at(step, 20_000, 0.2, 20, 2) == (beta if beta is None else pytest.approx(beta))


def test_the_error_sums_channels_and_averages_the_rest() -> None:
    y = torch.arange(12.0).reshape(2, 2, 3)  # squares sum to 0+1+4, 9+16+25, 36+49+64, 81+100+121 over the last axis
    assert squared_error(y, torch.zeros_like(y), -1).item() == pytest.approx((5 + 50 + 149 + 302) / 4)
    # over axis 1: 0+9, 1+16, 4+25, 36+81, 49+100, 64+121
    assert squared_error(y, torch.zeros_like(y), 1).item() == pytest.approx((9 + 17 + 29 + 117 + 149 + 185) / 6)

"""AdaRound's mathematics (arXiv:2004.10568): each weight learns whether to round down or up.

w' = s (clamp(floor(w / s) + h(α) + z, qmin, qmax) - z),    h(α) = clamp(1.2 σ(α) - 0.1, 0, 1)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d4c.quantizers.functional import dequantize
from d4c.quantizers.grids import AffineGrid

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """h(α) of eq. 23: a sigmoid stretched to (-0.1, 1.1) and clamped, so that it reaches 0 and 1."""
    return (alpha.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def initial_alpha(weight: Tensor, affine: AffineGrid) -> Tensor:
    """The α at which soft rounding returns the weight itself: h(α) = w / s - floor(w / s)."""
    scaled = weight / affine.scale
    fraction = scaled - scaled.floor()
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


def soft_weight(weight: Tensor, alpha: Tensor, affine: AffineGrid) -> Tensor:
    """The weight with soft rounding, differentiable in α; eq. 22."""
    codes = (weight / affine.scale).floor() + rectified_sigmoid(alpha) + affine.zero_point
    return dequantize(codes.clamp(affine.grid.qmin, affine.grid.qmax), affine.scale, affine.zero_point)


def hard_codes(weight: Tensor, alpha: Tensor, affine: AffineGrid) -> Tensor:
    """The codes that α decided on: up where α >= 0."""
    codes = (weight / affine.scale).floor() + (alpha >= 0).float() + affine.zero_point
    return codes.clamp(affine.grid.qmin, affine.grid.qmax)


def rounding_penalty(alpha: Tensor, beta: float) -> Tensor:
    """Sum 1 - |2 h(α) - 1|^β, eq. 24: 0 where every weight has decided; a scalar."""
    return (1 - (2 * rectified_sigmoid(alpha) - 1).abs().pow(beta)).sum()


def beta_at(step: int, iterations: int, warm_up: float, start: float, end: float) -> float | None:
    """The penalty's exponent: none before the warm-up ends, then linear from `start` to `end`.

    Args:
        step: from 1 to `iterations`.
    """
    first = warm_up * iterations
    if step < first:
        return None
    return start + (end - start) * (step - first) / (iterations - first)


def squared_error(y: Tensor, target: Tensor, dim: int) -> Tensor:
    """Mean over everything but one dimension of the sum over it of (y - target)^2; a scalar."""
    return F.mse_loss(y, target) * y.shape[dim]  # a quarter less time than squares and sums

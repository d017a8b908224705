"""The three verbs of quantization, in the one formula of ONNX QuantizeLinear.

q = clamp(round(x / scale) + zero_point, qmin, qmax),    x' = (q - zero_point) * scale,    ties to even
"""

from __future__ import annotations

import torch
from torch import Tensor

from d4c.quantizers.grids import IntegerGrid


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor:
    """Float -> codes, whole numbers held as float, same shape as `x`."""
    return ((x / scale).round() + zero_point).clamp(grid.qmin, grid.qmax)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Codes -> float, same shape as `codes`."""
    return (codes - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor:
    """Snap `x` to the grid; gradients pass straight through rounding, and stop where `x` is clipped.

    The gradient with respect to `scale` is LSQ's (arXiv:1902.08153, eq. 3): round(x/s) - x/s inside the range,
    qmin - z or qmax - z outside.
    """
    if not torch.is_grad_enabled() or not (x.requires_grad or scale.requires_grad):
        return dequantize(quantize(x, scale, zero_point, grid), scale, zero_point)
    return dequantize((round_straight_through(x / scale) + zero_point).clamp(grid.qmin, grid.qmax), scale, zero_point)


def round_straight_through(x: Tensor) -> Tensor:
    """Round to nearest even with gradient 1."""
    return x + (x.round() - x).detach()


def fake_quantize_per_token(x: Tensor, grid: IntegerGrid) -> Tensor:
    """Snap every vector along the last axis to a grid over its own smallest and largest value."""
    low, high = x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True).clamp(min=0)
    span = torch.maximum(-low, high) if grid.symmetric else high - low  # [.., 1]
    scale = span / grid.qmax
    scale = torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if grid.symmetric else (-low / scale).round()
    return fake_quantize(x, scale.detach(), zero_point.detach(), grid)

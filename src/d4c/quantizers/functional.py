"""The three verbs of quantization, in the one formula of ONNX QuantizeLinear.

q = clamp(round(x / scale) + zero_point, qmin, qmax),    x' = (q - zero_point) * scale,    ties to even
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d4c.quantizers.grids import IntegerGrid


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor:
    """Float -> codes, whole numbers held as float, same shape as `x`."""
    return (x / scale).round_().add_(zero_point).clamp_(grid.qmin, grid.qmax)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Codes -> float, same shape as `codes`."""
    return (codes - zero_point).mul_(scale)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor:
    """Snap `x` to the grid; gradients pass straight through rounding, and stop where `x` is clipped.

    The gradient with respect to `scale` is LSQ's (arXiv:1902.08153, eq. 3): round(x/s) - x/s inside the range,
    qmin - z or qmax - z outside.
    """
    if not torch.is_grad_enabled() or not (x.requires_grad or scale.requires_grad):
        return quantize(x, scale, zero_point, grid).sub_(zero_point).mul_(scale)  # in place: these codes are its own
    snapped: Tensor = _FakeQuantize.apply(x, scale, zero_point, grid)  # type: ignore[no-untyped-call]
    return snapped


class _FakeQuantize(torch.autograd.Function):
    """`fake_quantize` with its gradients written out: half the passes over `x` of composing it from operations.

    Only what a gradient needs is kept: where `x` is inside the grid for its own, d x'/d scale for that of the scale.
    Where that is, is held as 0 and 1 in float, whose operations take a third of the time of booleans'.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor:
        scaled = x / scale
        codes = scaled.round().add_(zero_point)
        steps = codes.clamp(grid.qmin, grid.qmax)
        inside = codes.eq_(steps)
        steps.sub_(zero_point)
        of_x, of_scale = ctx.needs_input_grad[:2]
        slope = torch.addcmul(steps, scaled, inside, value=-1) if of_scale else None  # steps - scaled inside
        ctx.save_for_backward(inside if of_x else None, slope, scale)
        return steps.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inside, slope, scale = ctx.saved_tensors
        of_x = None if inside is None else gradient * inside
        of_scale = None if slope is None else (gradient * slope).sum_to_size(scale.shape)
        return of_x, of_scale, None, None


def fake_quantize_per_token(x: Tensor, grid: IntegerGrid) -> Tensor:
    """Snap every vector along the last axis to a grid over its own smallest and largest value."""
    low, high = x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True).clamp(min=0)
    span = torch.maximum(-low, high) if grid.symmetric else high - low  # [.., 1]
    scale = span / grid.qmax
    scale = torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if grid.symmetric else (-low / scale).round()
    return fake_quantize(x, scale.detach(), zero_point.detach(), grid)

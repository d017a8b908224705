"""Layers computed in whole numbers, as integer kernels compute them.

Sums of products of codes are exact in float64; what follows is one float32 multiplication and one rounding:

    accumulator = Σ (a - z_a) w + b        y = float32(accumulator) x (s_a s_w)

and, where an integer tensor follows at once, y's code is round(float32(accumulator) x (s_a s_w / s_y)), ties to even.
Averages, and sums of two tensors, are taken of codes too, in onnxruntime's order, ties included.
The layers of a wrapped model (`quantizers.layers`) add the same products in float32, in an order of their own: they are
off by less than one code, and seldom by one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4c.quantizers.layers import QuantConv2d, QuantLinear, UniformQuantizer


class IntegerLinear(nn.Module):
    """A linear on codes.

    Args:
        source: the quantizer of what it reads.
        bias: whole numbers in units of input scale x weight scale, [out], or None.
    """

    codes: Tensor
    bias: Tensor | None
    input_scale: Tensor
    unit: Tensor

    def __init__(self, layer: QuantLinear, source: UniformQuantizer, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("codes", layer.weight.codes().double())
        self.register_buffer("bias", None if bias is None else bias.double())
        self.register_buffer("input_scale", source.scale.clone())
        self.register_buffer("unit", source.scale * layer.weight.scale.reshape(-1))  # [out]

    def forward(self, x: Tensor) -> Tensor:
        codes = (x / self.input_scale).round().double()  # x lies on its grid; zero points are off already
        return F.linear(codes, self.codes, self.bias).float() * self.unit


class IntegerConv2d(nn.Module):
    """A convolution on codes.

    Args:
        source: the quantizer of what it reads; bias: as for `IntegerLinear`.
        target: the quantizer that follows, perhaps behind a ReLU, or None where the result is float.
    """

    codes: Tensor
    bias: Tensor | None
    input_scale: Tensor
    output_scale: Tensor | None
    factor: Tensor

    def __init__(
        self, layer: QuantConv2d, source: UniformQuantizer, bias: Tensor | None, target: UniformQuantizer | None
    ) -> None:
        super().__init__()
        self.stride, self.padding = layer.stride, layer.padding
        self.register_buffer("codes", layer.weight.codes().double())
        self.register_buffer("bias", None if bias is None else bias.double())
        self.register_buffer("input_scale", source.scale.clone())
        self.register_buffer("output_scale", None if target is None else target.scale.clone())
        unit = source.scale * layer.weight.scale.reshape(-1)  # [out]
        self.register_buffer("factor", (unit if target is None else unit / target.scale).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        codes = (x / self.input_scale).round().double()
        y = F.conv2d(codes, self.codes, self.bias, self.stride, self.padding).float() * self.factor
        return y if self.output_scale is None else y.round() * self.output_scale


class IntegerAveragePool(nn.Module):
    """The mean of squares of `size` pixels: codes added, one multiplication, rounded to the codes that follow.

    Args:
        source: the quantizer of what it reads; target: the one that follows.
    """

    input_scale: Tensor
    output_scale: Tensor

    def __init__(self, size: int, source: UniformQuantizer, target: UniformQuantizer) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("input_scale", source.scale.clone())
        self.register_buffer("output_scale", target.scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        codes = (x / self.input_scale).round().double()
        sums = F.avg_pool2d(codes, self.size, divisor_override=1).float()
        return (sums * (self.input_scale / self.size**2 / self.output_scale)).round() * self.output_scale


class IntegerSum(nn.Module):
    """relu(x + y) of two tensors with codes a and b, on the grid of the quantizer that follows, all in float32.

        code = max(round((a r_a + (z - z_a r_a - z_b r_b)) + b r_b), z)        r_a = s_a / s, r_b = s_b / s

    The order is onnxruntime's. Where the sum lies half-way between two codes, that of the real values may round to the
    other one.

    Args:
        first, second: the quantizers of x and y; target: the one that follows.
    """

    first_scale: Tensor
    second_scale: Tensor
    scale: Tensor
    zero_points: Tensor

    def __init__(self, first: UniformQuantizer, second: UniformQuantizer, target: UniformQuantizer) -> None:
        super().__init__()
        self.register_buffer("first_scale", first.scale.clone())
        self.register_buffer("second_scale", second.scale.clone())
        self.register_buffer("scale", target.scale.clone())
        self.register_buffer("zero_points", torch.stack([q.zero_point for q in (first, second, target)]))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first_zero, second_zero, zero = self.zero_points
        first = (x / self.first_scale).round() + first_zero  # x lies on its grid
        second = (y / self.second_scale).round() + second_zero
        first_ratio, second_ratio = self.first_scale / self.scale, self.second_scale / self.scale
        fixed = zero - first_zero * first_ratio - second_zero * second_ratio
        codes = ((first * first_ratio + fixed) + second * second_ratio).round()
        return (codes.clamp(min=zero) - zero) * self.scale


def integer_layer(
    layer: QuantLinear | QuantConv2d, source: UniformQuantizer, bias: Tensor | None, target: UniformQuantizer | None
) -> nn.Module:
    """The same layer in whole numbers."""
    if isinstance(layer, QuantConv2d):
        return IntegerConv2d(layer, source, bias, target)
    return IntegerLinear(layer, source, bias)

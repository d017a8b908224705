"""Modules that stand in a wrapped model: quantizers on tensors, and layers whose weights lie on a grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4c.quantizers.functional import dequantize, fake_quantize, fake_quantize_per_token, quantize
from d4c.quantizers.grids import AffineGrid, IntegerGrid


class UniformQuantizer(nn.Module):
    """Snap a tensor to a fixed grid; it only applies a scale, finding one is calibration's work."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, affine: AffineGrid) -> None:
        super().__init__()
        self.grid = affine.grid
        self.register_buffer("scale", affine.scale.clone())
        self.register_buffer("zero_point", affine.zero_point.clone())

    @property
    def affine(self) -> AffineGrid:
        """Where the codes lie."""
        return AffineGrid(self.scale, self.zero_point, self.grid)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale, self.zero_point, self.grid)


class TokenQuantizer(nn.Module):
    """Snap each token's vector to a grid over its own range, found in every forward."""

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize_per_token(x, self.grid)


class GridWeight(nn.Module):
    """A weight whose every value lies on its grid, so that it can be frozen to codes without loss.

    Args:
        weight: float, any shape; rounded to nearest unless it lies on the grid already, and shared then.
        affine: scale broadcastable to `weight`.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, affine: AffineGrid) -> None:
        super().__init__()
        self.grid = affine.grid
        self.register_buffer("scale", affine.scale.clone())
        self.register_buffer("zero_point", affine.zero_point.clone())
        given = weight.detach().float()
        codes = quantize(given, affine.scale, affine.zero_point, affine.grid)
        values = dequantize(codes, self.scale, self.zero_point)
        self.register_buffer("values", given if torch.equal(values, given) else values)

    @property
    def affine(self) -> AffineGrid:
        """Where the codes lie."""
        return AffineGrid(self.scale, self.zero_point, self.grid)

    def codes(self) -> Tensor:
        """The whole numbers behind the values, float32, same shape.

        Raises:
            ValueError: a value does not lie on the grid.
        """
        codes = quantize(self.values, self.scale, self.zero_point, self.grid)
        if not torch.equal(dequantize(codes, self.scale, self.zero_point), self.values):
            raise ValueError("a weight does not lie on its grid")
        return codes

    def set_codes(self, codes: Tensor, affine: AffineGrid | None = None) -> None:
        """Choose other codes; the grid stays where it is unless another place is given.

        Raises:
            ValueError: a code is not whole or outside the grid.
        """
        if not bool(((codes == codes.round()) & (codes >= self.grid.qmin) & (codes <= self.grid.qmax)).all()):
            raise ValueError(f"need whole codes from {self.grid.qmin} to {self.grid.qmax}")
        if affine is not None:
            self.scale, self.zero_point = affine.scale.clone(), affine.zero_point.clone()
        self.values = dequantize(codes, self.scale, self.zero_point)  # a new tensor: copies may share the old one


class QuantLinear(nn.Module):
    """y = input_quantizer(x) Wᵀ + b with W on a grid."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, affine: AffineGrid, input_quantizer: nn.Module) -> None:
        super().__init__()
        self.input_quantizer = input_quantizer
        self.weight = GridWeight(linear.weight, affine)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input_quantizer(x), self.weight.values, self.bias)


class QuantConv2d(nn.Module):
    """y = conv(input_quantizer(x), W) + b with W on a grid; padding is exact zero on every grid."""

    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, affine: AffineGrid, input_quantizer: nn.Module) -> None:
        super().__init__()
        if conv.groups != 1 or conv.dilation != (1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError("need a plain convolution: one group, no dilation, zero padding")
        self.stride, self.padding = conv.stride, conv.padding
        self.input_quantizer = input_quantizer
        self.weight = GridWeight(conv.weight, affine)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.input_quantizer(x), self.weight.values, self.bias, self.stride, self.padding)


class QuantEmbedding(nn.Module):
    """Rows of a table on a grid, looked up by id."""

    def __init__(self, embedding: nn.Embedding, affine: AffineGrid) -> None:
        super().__init__()
        self.weight = GridWeight(embedding.weight, affine)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight.values)


QuantLayer = QuantLinear | QuantConv2d | QuantEmbedding

"""Integer grids, what shares one, and where one lies on the real line."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """The codes a value can become: 2^num_bits whole numbers, signed around 0 or unsigned from 0.

    Args:
        num_bits: 2 to 16; more than 8 serve tests only.
        symmetric: codes -2^(b-1) .. 2^(b-1)-1 with zero point 0, else 0 .. 2^b-1 with a free zero point.
    """

    num_bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        if not 2 <= self.num_bits <= 16:
            raise ValueError(f"need 2 to 16 bits, got {self.num_bits}")

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return -(2 ** (self.num_bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return 2 ** (self.num_bits - 1) - 1 if self.symmetric else 2**self.num_bits - 1


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for all values; its shape is []."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each index of `axis`; its shape is 1 on every other axis."""

    axis: int


@dataclass(frozen=True, slots=True)
class PerToken:
    """One scale for each vector along the last axis, found anew in every forward; nothing is calibrated."""


Granularity = PerTensor | PerChannel | PerToken


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """How one tensor is quantized: which codes, and what shares a scale.

    Args:
        pair_safe: keep the codes such that u8 x s8 products, added in neighbouring pairs, fit 16 bits (`pair_safe`).
    """

    grid: IntegerGrid
    granularity: Granularity
    pair_safe: bool = False

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte in a file."""
        return self.grid.num_bits <= 4 and self.grid.symmetric

    def code_bytes(self, count: int) -> int:
        """What so many codes take in a file."""
        return -(-count // 2) if self.packed else count


@dataclass(frozen=True, slots=True)
class AffineGrid:
    """An integer grid placed on the real line: x ~ (q - zero_point) * scale.

    Args:
        scale: float32 > 0, units of x a step; [] or [1, .., channel, .., 1].
        zero_point: same shape; whole numbers held as float32.

    Raises:
        ValueError: shapes differ, a scale is not positive and finite, or a zero point is not a code.
    """

    scale: Tensor
    zero_point: Tensor
    grid: IntegerGrid

    def __post_init__(self) -> None:
        scale, zero = self.scale, self.zero_point
        if scale.shape != zero.shape or not bool((scale.isfinite() & (scale > 0)).all()):
            raise ValueError(f"need scale > 0 shaped {[*zero.shape]}, got {[*scale.shape]} from {scale.min():g}")
        if not bool(((zero == zero.round()) & (zero >= self.grid.qmin) & (zero <= self.grid.qmax)).all()):
            raise ValueError(f"need whole zero points from {self.grid.qmin} to {self.grid.qmax}")


def place_grid(low: Tensor, high: Tensor, grid: IntegerGrid) -> AffineGrid:
    """A grid over the range low .. high; see `cover`."""
    return AffineGrid(*cover(low, high, grid), grid)


def cover(low: Tensor, high: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a grid over the range low .. high, widened to hold zero exactly.

    Asymmetric: scale = (high - low) / qmax, zero_point = round(-low / scale).
    Symmetric: scale = max(-low, high) / qmax.
    An empty range gets scale 1, and codes 0.

    Args:
        low, high: same shape, [] or [1, .., channel, .., 1].
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    span = torch.maximum(-low, high) if grid.symmetric else high - low
    scale = span / grid.qmax
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if grid.symmetric else (-low / scale).round().clamp(grid.qmin, grid.qmax)
    return scale, zero_point

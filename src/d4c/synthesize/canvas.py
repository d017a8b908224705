"""What an optimiser moves: the pixels themselves, or the levels of a pyramid that pictures are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from d4c.images import clamp_valid
from d4c.inputs import Preprocess

MARGIN = 0.02  # of the range between black and white that a start keeps from both ends: σ never reaches them


class Canvas(Protocol):
    """Parameters that become pictures."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """What the optimiser moves."""
        ...

    def render(self) -> Tensor:
        """The pictures, [image, 3, size, size] in normalised space, differentiable."""
        ...

    def settle(self) -> None:
        """Called after every step."""
        ...


class Pixels:
    """The pixels themselves.

    Args:
        start: [image, 3, size, size]; valid: clamp to what a picture can hold after every step.
    """

    def __init__(self, start: Tensor, preprocess: Preprocess, *, valid: bool) -> None:
        self.x = start.clone().requires_grad_()
        self.preprocess, self.valid = preprocess, valid

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The pixels."""
        return [self.x]

    def render(self) -> Tensor:
        """The pixels."""
        return self.x

    @torch.no_grad()
    def settle(self) -> None:
        """Clamp."""
        if self.valid:
            self.x.copy_(clamp_valid(self.x, self.preprocess))


class Pyramid:
    """x = black + (white - black) σ(Σ_r up(p_r)): levels of 1, 2, 4 … size pixels, each enlarged to the whole picture.

    One step moves coarse and fine structure alike, so that spectra stay natural without a penalty, and no pixel leaves
    its range. Source: the multi-resolution parametrisation of Direct Ascent Synthesis (arXiv:2502.07753).

    Args:
        start: pictures to begin with, [image, 3, size, size] in normalised space.
    """

    def __init__(self, start: Tensor, preprocess: Preprocess) -> None:
        low, high = (torch.from_numpy(v).to(start.device) for v in preprocess.valid_range())
        self.low, self.span = low, high - low
        share = ((start - low) / self.span).clamp(MARGIN, 1 - MARGIN)
        images, channels, size = start.shape[:3]
        coarse = [start.new_zeros(images, channels, side, side) for side in level_sizes(size)[:-1]]
        self.levels = [level.requires_grad_() for level in (*coarse, share.logit())]

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The levels, coarse to fine."""
        return self.levels

    def render(self) -> Tensor:
        """The pictures."""
        *coarse, finest = self.levels
        total = finest
        for level in coarse:
            total = total + F.interpolate(level, size=finest.shape[-2:], mode="bilinear", align_corners=False)
        return self.low + self.span * total.sigmoid()

    def settle(self) -> None:
        """Nothing to do: pictures are valid by construction."""


def level_sizes(size: int) -> list[int]:
    """1, 2, 4 … up to `size`, each half of the next, rounded up."""
    sizes = [size]
    while sizes[0] > 1:
        sizes.insert(0, -(-sizes[0] // 2))
    return sizes

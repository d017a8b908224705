"""Images that need no model: white noise, 1/f noise, dead leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from d4c.images.image_set import ImageSet
from d4c.inputs import Preprocess

# How natural images mix colour: the root of their colour covariance as Lucid publishes it, over its longest column.
COLOUR_ROOT = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
MIN_LEAF, MAX_LEAF = 0.02, 0.5  # radius in sides


def white_noise(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Independent standard normal pixels, [image, 3, size, size], in normalised space; the paper's start."""
    return torch.randn(num, 3, size, size, generator=generator)


def one_over_f(num: int, size: int, generator: torch.Generator, slope: float = 1.0) -> Tensor:
    """Noise whose amplitude falls with frequency as natural images' does, |F| ~ 1 / f^slope.

    Each channel is standardised, and colours are mixed as in natural images.

    Returns:
        [image, 3, size, size], zero mean, a standard deviation of about 0.6 a channel, not yet in any valid range.
    """
    spectrum = torch.fft.rfft2(torch.randn(num, 3, size, size, generator=generator))  # [image, 3, row, column]
    row, column = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    frequency = (row.square() + column.square()).sqrt().clamp(min=1 / size)  # [row, column]
    x = torch.fft.irfft2(spectrum / frequency**slope, s=(size, size))  # [image, 3, row, column]
    x = (x - x.mean(dim=(2, 3), keepdim=True)) / x.std(dim=(2, 3), keepdim=True)
    root = COLOUR_ROOT / COLOUR_ROOT.norm(dim=0).max()
    return torch.einsum("dc,nchw->ndhw", root, x)


def dead_leaves(num: int, size: int, generator: torch.Generator, leaves: int = 400) -> Tensor:
    """Discs that hide each other, radii falling as r^-3, each with a random colour and a 1/f texture.

    Edges, occlusion and texture at all scales, by the simplest process that works in "Learning to see by looking at
    noise" (arXiv:2106.05963).

    Returns:
        [image, 3, size, size] about zero, not yet in any valid range.
    """
    position = (torch.arange(size) + 0.5) / size  # [row]
    root = COLOUR_ROOT / COLOUR_ROOT.norm(dim=0).max()
    x = 0.4 * one_over_f(num, size, generator)  # [image, 3, row, column]
    texture = x.repeat(1, 1, 2, 2).numpy()  # a window of it is the texture moved around the edges
    pictures = x.numpy()  # the same memory
    for _ in range(leaves):
        u = torch.rand(num, 3, generator=generator)  # radius, row, column of each image's leaf
        radius = (MIN_LEAF**-2 + u[:, 0] * (MAX_LEAF**-2 - MIN_LEAF**-2)) ** -0.5  # density ~ r^-3
        colour = (1.2 * (torch.randn(num, 3, generator=generator) @ root.T)).numpy()[:, :, None, None]
        down, right = torch.randint(size, (2,), generator=generator).tolist()
        distance = (position - u[:, 1:, None]).square().numpy()  # squared, [image, row or column, pixel]
        reach = radius.square().tolist()
        first = ((u[:, 1:] - radius[:, None]) * size - 1).clamp(min=0).int().tolist()  # a pixel more than need be
        stop = ((u[:, 1:] + radius[:, None]) * size + 2).clamp(max=size).int().tolist()
        for i, ((top, left), (bottom, end)) in enumerate(zip(first, stop, strict=True)):  # most leaves are small
            inside = distance[i, 0, top:bottom, None] + distance[i, 1, left:end] <= reach[i]
            behind = texture[i, :, size + top - down : size + bottom - down, size + left - right : size + end - right]
            np.copyto(pictures[i, :, top:bottom, left:end], colour[i] + behind, where=inside)
    return x


Generate = Callable[[int, int, torch.Generator], Tensor]
PROCEDURES: dict[str, Generate] = {"noise": white_noise, "one_over_f": one_over_f, "dead_leaves": dead_leaves}


def procedural_pixels(name: str, num: int, preprocess: Preprocess, seed: int, *, valid: bool = True) -> Tensor:
    """Images of a procedure in normalised space.

    Args:
        name: a key of `PROCEDURES`.
        valid: clamp to what a picture can hold.

    Returns:
        float32 [image, 3, size, size].
    """
    pixels = PROCEDURES[name](num, preprocess.size, torch.Generator().manual_seed(seed))
    return clamp_valid(pixels, preprocess) if valid else pixels


def clamp_valid(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Clamp [image, 3, height, width] to the range between black and white."""
    low, high = (torch.from_numpy(v).to(pixels.device) for v in preprocess.valid_range())
    return torch.minimum(torch.maximum(pixels, low), high)


def procedural_set(name: str, num: int, preprocess: Preprocess, seed: int, *, valid: bool = True) -> ImageSet:
    """`procedural_pixels` as an image set."""
    return ImageSet.unlabelled(procedural_pixels(name, num, preprocess, seed, valid=valid), name, seed, valid=valid)

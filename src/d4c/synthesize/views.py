"""How an optimised image is shown to the model: its foreground enlarged, its background alone, perturbed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_AREA, MAX_AREA = 0.4, 0.7
BACKGROUND_NOISE = 0.1
MAX_ANGLE, SCALE_SPREAD, MAX_SHIFT = math.radians(15), 0.05, 0.05
COLOUR_SPREAD = 0.4
BLUR_PROBABILITY = ERASE_PROBABILITY = 0.3
ERASED_SIDE = 0.2


def sample_boxes(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Square foreground boxes of 40 to 70 % of the area, anywhere in the image.

    Returns:
        int64 [image, 4]: top, left, height, width in pixels.
    """
    area = (torch.empty(num).uniform_(MIN_AREA, MAX_AREA, generator=generator) * size * size).floor()
    side = area.sqrt().floor()  # [image]
    corner = (torch.rand(num, 2, generator=generator) * (size - side + 1)[:, None]).floor()  # [image, 2]
    return torch.cat([corner, side[:, None].expand(-1, 2)], dim=1).long()


def enlarge_boxes(x: Tensor, boxes: Tensor) -> Tensor:
    """Cut every image's box out and enlarge it to the size of the image, all images at once.

    Equal to F.interpolate(crop, mode="bilinear", align_corners=False) image by image.

    Args:
        x: [image, channel, size, size]; boxes: [image, 4] top, left, height, width.

    Returns:
        [image, channel, size, size].
    """
    size = x.shape[-1]
    boxes = boxes.to(x.device)

    def positions(start: Tensor, length: Tensor) -> Tensor:  # in the image, [image, size], in units of its half side
        position = (torch.arange(size, device=x.device) + 0.5) * (length[:, None] / size) - 0.5
        position = torch.minimum(position.clamp(min=0), (length[:, None] - 1).float()) + start[:, None]
        return position * (2 / (size - 1)) - 1

    rows = positions(boxes[:, 0], boxes[:, 2])[:, :, None].expand(-1, -1, size)  # [image, row, column]
    columns = positions(boxes[:, 1], boxes[:, 3])[:, None, :].expand(-1, size, -1)  # [image, row, column]
    return F.grid_sample(x, torch.stack([columns, rows], dim=-1), align_corners=True)


def background(x: Tensor, boxes: Tensor, generator: torch.Generator) -> Tensor:
    """The image with its box set to zero, and faint noise over all of it.

    Args:
        x: [image, channel, size, size]; boxes: [image, 4] top, left, height, width.
    """
    inside = box_mask(boxes, x.shape[-1]).to(x.device)
    return x * ~inside + BACKGROUND_NOISE * normal_like(x, generator)


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal values of x's shape, drawn where x lies, since large ones take long to move.

    Args:
        generator: on the CPU; for another device it draws the seed of that device's own.
    """
    if x.device.type != "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=generator, device=x.device)


def box_mask(boxes: Tensor, size: int) -> Tensor:
    """True inside each image's box, [image, 1, size, size]; boxes as in `sample_boxes`."""
    position = torch.arange(size, device=boxes.device)
    top, left, height, width = (boxes[:, i, None] for i in range(4))  # [image, 1]
    rows = (position >= top) & (position < top + height)  # [image, row]
    columns = (position >= left) & (position < left + width)  # [image, column]
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def perturb(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, turn, scale and shift, recolour, blur, erase: each image its own draw (PAE).

    Flip with probability 0.5; affine always: up to 15 degrees, scale 0.95 to 1.05, shift 0.05 in [-1, 1] coordinates,
    zeros outside; contrast, brightness and saturation 0.6 to 1.4 always; a 3x3 blur and an erased square of a fifth
    of the side with probability 0.3 each.

    Args:
        x: [image, channel, size, size].
    """
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return (
            torch.empty(n).uniform_(low, high, generator=generator).to(x.device, non_blocking=True)[:, None, None, None]
        )

    x = torch.where(uniform(0, 1) < 0.5, x.flip(-1), x)
    x = _affine(x, *(uniform(*r).flatten() for r in _affine_ranges()))
    x = x * uniform(1 - COLOUR_SPREAD, 1 + COLOUR_SPREAD) * uniform(1 - COLOUR_SPREAD, 1 + COLOUR_SPREAD)
    x = torch.lerp(x.mean(dim=1, keepdim=True), x, uniform(1 - COLOUR_SPREAD, 1 + COLOUR_SPREAD))
    x = torch.where(uniform(0, 1) < BLUR_PROBABILITY, blur(x), x)
    keep = ~box_mask(_erased_boxes(n, x.shape[-1], generator).to(x.device, non_blocking=True), x.shape[-1])
    return torch.where(uniform(0, 1) < ERASE_PROBABILITY, x * keep, x)


def roll_and_mirror(x: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Roll the whole batch by one offset along both axes, and mirror it half of the time (PSAQ-ViT).

    Args:
        x: [image, channel, size, size]; reach: largest offset, pixels.
    """
    offset = int(torch.randint(-reach, reach + 1, (), generator=generator))
    x = x.roll((offset, offset), dims=(2, 3))
    return x.flip(-1) if float(torch.rand((), generator=generator)) < 0.5 else x


def blur(x: Tensor) -> Tensor:
    """Convolve with [1 2 1] x [1 2 1] / 16, zeros outside; [image, channel, height, width]."""
    line = 2 - torch.arange(-1, 2, dtype=x.dtype, device=x.device).abs()  # 1 2 1, made where it is needed
    kernel = (line[:, None] * line / 16).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def _affine_ranges() -> list[tuple[float, float]]:
    shift = (-MAX_SHIFT, MAX_SHIFT)
    return [(-MAX_ANGLE, MAX_ANGLE), (1 - SCALE_SPREAD, 1 + SCALE_SPREAD), shift, shift]


def _affine(x: Tensor, angle: Tensor, scale: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).reshape(-1, 2, 3)  # output -> input
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def _erased_boxes(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Full size near the low border, cut off near the high one, as the authors have it."""
    side = int(ERASED_SIDE * size)
    centre = torch.randint(size, (num, 2), generator=generator)
    corner = (centre - side // 2).clamp(min=0)
    return torch.cat([corner, torch.full((num, 2), side)], dim=1)

"""Random crops of calibration images: more statistics from each, for the price of a forward pass."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from d4c.images.image_set import ImageSet
from d4c.recipes.seeds import derive_seed

MIN_SIDE = 0.6  # of the image's


def with_crops(images: ImageSet, crops: int, seed: int) -> ImageSet:
    """Every image, and right behind it some random crops of it, brought back to its size.

    A crop is a square of 60 to 100 % of the side, anywhere, mirrored half of the time.

    Args:
        crops: of each image; 0 gives the set back as it is.
    """
    if not crops:
        return images
    generator = torch.Generator().manual_seed(derive_seed(seed, "reconstruct", "crops"))
    pixels, index, boxes = (
        x.repeat_interleave(1 + crops, dim=0) for x in (images.pixels, images.prompt_index, images.boxes)
    )
    for i in range(len(pixels)):
        if i % (1 + crops):
            pixels[i] = _crop(pixels[i], generator)  # in place: at full size the set is most of a stage's memory
            boxes[i] = -1  # it lies elsewhere now
    return dataclasses.replace(images, pixels=pixels, prompt_index=index, boxes=boxes)


def _crop(x: Tensor, generator: torch.Generator) -> Tensor:
    size = x.shape[-1]
    share = MIN_SIDE + (1 - MIN_SIDE) * float(torch.rand((), generator=generator))
    side = max(1, round(share * size))
    top, left = torch.randint(size - side + 1, (2,), generator=generator).tolist()
    part = x[None, :, top : top + side, left : left + side]
    whole = F.interpolate(part, size=(size, size), mode="bilinear", align_corners=False)[0]
    return whole.flip(-1) if float(torch.rand((), generator=generator)) < 0.5 else whole

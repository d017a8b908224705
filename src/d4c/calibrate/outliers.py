"""Images that would calibrate for themselves alone."""

from __future__ import annotations

import torch

from d4c.images import ImageSet
from d4c.models import Clip
from d4c.models.parts import run_in_batches, tower_parts

MOST = 0.1  # of the images: what is more frequent than that is how images are


def without_outliers(clip: Clip, images: ImageSet, factor: float) -> ImageSet:
    """The images but those on which the float model itself runs away.

    One picture on which a block puts out hundreds of times what it does elsewhere decides every range and every sum of
    squares from there on, and the other pictures are left with a few codes. On `tiny-rn` three of 512 photographs are
    like that, saturated red or pink.

    Args:
        clip: float, BatchNorm folded.
        factor: how many times the median image's largest value is too much, for any part of the image tower; 0 keeps
            every image.
    """
    if not factor:
        return images
    inputs = images.pixels.to(clip.logit_scale.device)
    stream, odd = inputs, torch.zeros(len(images), dtype=torch.bool, device=inputs.device)
    for part in tower_parts(clip, "image"):
        stream = run_in_batches(part, stream, inputs)
        largest = stream.abs().flatten(1).amax(dim=1)
        odd |= largest > factor * largest.median()
    if not odd.any() or odd.sum() > MOST * len(images):
        return images
    return images.take(~odd.cpu())

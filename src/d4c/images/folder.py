"""Pictures of one's own as a calibration set."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from d4c.errors import ImageFileError, UsageError
from d4c.images.image_set import ImageSet
from d4c.inputs import PICTURE_SUFFIXES, Preprocess, read_pixels


def load_image_folder(
    folder: Path, preprocess: Preprocess, limit: int | None = None, seed: int | None = None
) -> ImageSet:
    """Read the pictures of a folder and its subfolders, in the order of their paths.

    Args:
        limit: how many to read at most: the first, or with a seed a sample.

    Raises:
        UsageError: there is no such folder.
        ImageFileError: it holds no pictures, or one cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if seed is not None:
        paths = sorted(random.Random(seed).sample(paths, min(limit or len(paths), len(paths))))
    paths = paths[:limit]
    if not paths:
        raise ImageFileError(f"{folder}: no pictures ({' '.join(sorted(PICTURE_SUFFIXES))})")
    pixels = [read_pixels(path, preprocess) for path in paths]
    return ImageSet.unlabelled(torch.from_numpy(np.stack(pixels)), "folder", files=len(paths))

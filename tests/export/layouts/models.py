"""What several tests of layouts build or compare with."""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conftest import SIGLIP

SMALL_SIGLIP = dataclasses.replace(
    SIGLIP, text=dataclasses.replace(SIGLIP.text, context_length=16, vocab_size=40)
)  # fmt: skip


def centred_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """‖found − expected‖ over ‖expected − its mean‖."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean(axis=0)))


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def drawn_picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Coloured discs and bars on a gradient: edges, flat parts and slopes; size is (width, height)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32)  # [height, width]
    picture = np.stack([x / size[0], y / size[1], (x + y) / sum(size)], axis=-1) * rng.uniform(100, 255, 3)
    for _ in range(12):
        centre, radius, colour = rng.uniform(0, size), rng.uniform(4, min(size) / 2), rng.uniform(0, 255, 3)
        inside = np.hypot(x - centre[0], y - centre[1]) < radius
        if rng.random() < 0.4:
            inside = np.abs((x - centre[0]) * rng.normal() + (y - centre[1]) * rng.normal()) < radius / 3
        picture[inside] = colour
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))

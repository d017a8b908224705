"""Tiny ImageNet's training rows as arrays: which rows train, which decide settings, which calibrate."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

TRAIN = slice(0, 46_000)
REAL_CALIBRATION = slice(46_000, 46_512)  # never trained on: the real images that methods are compared with
SETTINGS = slice(46_512, 48_000)  # never trained on: every choice of a setting is made on these rows
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def load_rows(root: Path, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Decode rows of `root/tiny-imagenet/train.parquet`.

    Returns:
        uint8 images [image, height, width, 3] and int64 labels [image].
    """
    table = parquet.read_table(root / "tiny-imagenet" / "train.parquet").slice(rows.start, rows.stop - rows.start)
    images = np.stack([np.asarray(Image.open(io.BytesIO(b.as_py())).convert("RGB")) for b in table["image"]])
    return images, table["label"].to_numpy().astype(np.int64)


def load_classes(root: Path) -> list[dict[str, Any]]:
    """The 200 classes in label order: `label`, `wnid`, `name`, `synonyms`."""
    classes: list[dict[str, Any]] = json.loads((root / "tiny-imagenet" / "classes.json").read_text())
    return sorted(classes, key=lambda c: c["label"])

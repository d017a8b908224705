"""ImageNet-1K as it is published: two archives, unpacked once, or the folders that torchvision makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d4c.artifact.work import Report
from d4c.errors import RunError
from d4c.inputs import Preprocess

DEVKIT, VALIDATION, META = "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_val.tar", "meta.bin"
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp"}


@dataclass(frozen=True)
class ImageFiles:
    """Pictures in files, in order, each with its label."""

    files: Sequence[tuple[Path, int]]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[NDArray[np.float32], int]:
        path, label = self.files[number]
        with Image.open(path) as picture:
            return self.preprocess(picture.convert("RGB")), label  # first of all, as torchvision's loader does

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], int]]:
        return (self[number] for number in range(len(self)))


def is_imagenet(root: Path, split: str) -> bool:
    """Whether the folder of the split is there, or what it can be made of."""
    archives = (root / VALIDATION).is_file() and ((root / META).is_file() or (root / DEVKIT).is_file())
    return (root / split).is_dir() or (split == "val" and archives)


def read_imagenet(
    root: Path,
    preprocess: Preprocess,
    split: str,
    curated: Mapping[str, str],
    report: Report,
) -> tuple[ImageFiles, tuple[str, ...]]:
    """List the images of `split/WNID/`, after unpacking the archives where that is needed, and name the classes.

    A label is the place of its WordNet id among the sorted ids of meta.bin; without that file, among all 1,000.

    Args:
        split: "val" or "train".
        curated: class names by WordNet id, of all 1,000.

    Raises:
        RunError: an archive or meta.bin is broken, or there are no images.
    """
    if not (root / split).is_dir():
        report("unpack ImageNet", 0, 0)
        _unpack(root)
    names = _meta(root / META)[0] if (root / META).exists() else {}
    wnids = sorted(names or curated)
    label_by_wnid = {wnid: i for i, wnid in enumerate(wnids)}
    files = []
    for folder in sorted(f for f in (root / split).iterdir() if f.is_dir()):
        if folder.name not in label_by_wnid:
            raise RunError(f"{folder}: not one of the {len(wnids)} classes")
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        files += [(path, label_by_wnid[folder.name]) for path in paths]
    if not files:
        raise RunError(f"{root / split}: no images in folders that are called like WordNet ids")
    return ImageFiles(files, preprocess), tuple(curated.get(wnid) or names[wnid][0] for wnid in wnids)


def _unpack(root: Path) -> None:
    """Make `val/WNID/` and meta.bin with torchvision's code, which checks the archives' MD5; whole or not at all."""
    from torchvision.datasets import imagenet

    unfinished = root / "val.unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        if not (root / META).exists():
            imagenet.parse_devkit_archive(str(root))
        imagenet.parse_val_archive(str(root), wnids=_meta(root / META)[1], folder=unfinished.name)
        unfinished.rename(root / "val")
    except RunError:
        raise
    except (RuntimeError, ValueError, KeyError, EOFError) as error:  # how torchvision, tarfile and scipy say it
        raise RunError(f"{root}: ImageNet's archives cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _meta(path: Path) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """What torchvision saved: names by WordNet id, and the WordNet id of each validation image; nothing is executed."""
    import torch

    try:
        names, wnids = torch.load(path, weights_only=True)
        if not names or not all(isinstance(n, (tuple, list)) and n for n in names.values()):
            raise ValueError("no names by WordNet id")
        return names, wnids
    except Exception as error:  # a broken file ends in almost any error
        raise RunError(f"{path}: not the pair that torchvision saves: {error}") from error

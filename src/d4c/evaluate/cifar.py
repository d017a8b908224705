"""CIFAR-10 and CIFAR-100 as they are published: pickled arrays, read without executing anything that a file says."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d4c.errors import RunError
from d4c.inputs import Preprocess

SIDE = 32
# All that a pickled array may name, by what today's numpy calls it.
_RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]
_FROM_BUFFER: Any = np.zeros(0).__reduce_ex__(5)[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
    ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),
}


@dataclass(frozen=True)
class CifarLayout:
    """Where the files of one of the two sets lie, as torchvision expects them.

    Args:
        folder: below the root; archive: what it was unpacked from, read as well as it is.
        test, train: names of the pickled batches; labels: the key of their labels.
        meta, classnames: name of the file with the class names, and their key.
    """

    folder: str
    archive: str
    test: tuple[str, ...]
    train: tuple[str, ...]
    labels: str
    meta: str
    classnames: str

    def is_below(self, root: Path) -> bool:
        """Whether the folder or the archive is there."""
        return (root / self.folder).is_dir() or (root / self.archive).is_file()


CIFAR = {
    "cifar10": CifarLayout(
        "cifar-10-batches-py", "cifar-10-python.tar.gz", ("test_batch",), tuple(f"data_batch_{i}" for i in range(1, 6)),
        "labels", "batches.meta", "label_names",
    ),
    "cifar100": CifarLayout(
        "cifar-100-python", "cifar-100-python.tar.gz", ("test",), ("train",), "fine_labels", "meta", "fine_label_names",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CifarImages:
    """Images [image, 3, 32, 32] uint8 in the file's order, and their labels [image]."""

    images: NDArray[np.uint8]
    labels: Sequence[int]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[NDArray[np.float32], int]:
        picture = Image.fromarray(self.images[number].transpose(1, 2, 0))
        return self.preprocess(picture), self.labels[number]

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], int]]:
        return (self[number] for number in range(len(self)))


def read_cifar(name: str, root: Path, preprocess: Preprocess, split: str) -> tuple[CifarImages, tuple[str, ...]]:
    """Read one split and the class names; files of the other split need not be there.

    Class names are the files' own, those of CIFAR-100 with underscores, as CLIP_benchmark uses them.

    Raises:
        RunError: a file is missing or broken, or holds something else than arrays and lists.
    """
    layout = CIFAR[name]
    batches = layout.train if split == "train" else layout.test
    files = _read_files(layout, root, (*batches, layout.meta))
    parts = [_batch(_unpickle(files[batch], batch), layout, batch) for batch in batches]
    classnames = _unpickle(files[layout.meta], layout.meta).get(layout.classnames)
    if not isinstance(classnames, list) or not all(isinstance(n, str) for n in classnames):
        raise RunError(f"{layout.folder}/{layout.meta}: no class names under '{layout.classnames}'")
    images = np.concatenate([images for images, _ in parts])
    return CifarImages(images, [label for _, labels in parts for label in labels], preprocess), tuple(classnames)


def _batch(content: dict[str, Any], layout: CifarLayout, file: str) -> tuple[NDArray[np.uint8], list[int]]:
    images, labels = content.get("data"), content.get(layout.labels)
    pixels: NDArray[Any] = images if isinstance(images, np.ndarray) else np.zeros((0, 0))
    fits = pixels.dtype == np.uint8 and pixels.shape[1:] == (3 * SIDE**2,)
    if not fits or not isinstance(labels, list) or len(labels) != len(pixels):
        raise RunError(f"{layout.folder}/{file}: not {SIDE}x{SIDE} images with a label each")
    return pixels.reshape(-1, 3, SIDE, SIDE), labels  # [image, channel, height, width]


def _read_files(layout: CifarLayout, root: Path, names: Sequence[str]) -> dict[str, bytes]:
    folder = root / layout.folder
    if folder.is_dir():
        lost = [name for name in names if not (folder / name).is_file()]
        if lost:
            raise RunError(f"{folder}: {lost[0]} is missing")
        return {name: (folder / name).read_bytes() for name in names}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(root / layout.archive) as tar:
            for info in tar:
                file = tar.extractfile(info) if info.name.removeprefix(f"{layout.folder}/") in names else None
                if file is not None:
                    found[info.name.removeprefix(f"{layout.folder}/")] = file.read()
                if len(found) == len(names):
                    return found
    except (tarfile.TarError, EOFError, OSError) as error:
        raise RunError(f"{root / layout.archive} cannot be read: {error}") from error
    raise RunError(f"{root / layout.archive}: {next(n for n in names if n not in found)} is not in it")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds lists, dicts and arrays; every other name in a pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for; it raises for all but the parts of arrays."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array")
        return _ALLOWED[module, name]


def _unpickle(data: bytes, file: str) -> dict[str, Any]:
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a broken pickle ends in almost any error
        raise RunError(f"{file}: not the pickle that it should be: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not the pickle that it should be: no dict")
    return content

"""Where things run and where they may be written."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import torch

from d4c.errors import UsageError

KEPT_IMAGES = "images.safetensors"
# What may lie in OUT.work: a folder for each stage, the artifact or the images while they are written.
_PIECE = re.compile(r"[a-z-]+-[0-9a-f]{16}|artifact|images")


def check_writable(folder: Path) -> None:
    """Raise `UsageError` unless a folder can be made at this path, or is there."""
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(20, "is a file", str(folder))
        with tempfile.TemporaryDirectory(dir=parent, prefix=".d4c-"):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}") from error


def work_folder_of(out: Path) -> Path:
    """Where the unfinished work of OUT lies, OUT.work beside it."""
    return out.with_name(out.name + ".work")


def check_pieces(work_folder: Path) -> None:
    """Raise `UsageError` if a folder for unfinished work holds anything that no run left there."""
    for entry in work_folder.iterdir() if work_folder.is_dir() else ():
        if entry.name != KEPT_IMAGES and not _PIECE.fullmatch(entry.name):
            raise UsageError(f"{entry} is no unfinished work; name another place with --out")


def remove_pieces(work_folder: Path) -> None:
    """Remove what unfinished stages left; images that were to be kept stay."""
    for entry in work_folder.iterdir() if work_folder.is_dir() else ():
        if entry.name != KEPT_IMAGES:
            shutil.rmtree(entry, ignore_errors=True)
    if work_folder.is_dir() and not any(work_folder.iterdir()):
        work_folder.rmdir()


def remove_run(out: Path) -> None:
    """Remove an artifact and what unfinished stages left of it; if interrupted, what is left is unfinished work."""
    pieces = work_folder_of(out)
    shutil.rmtree(pieces, ignore_errors=True)
    if out.is_dir():
        pieces.mkdir(exist_ok=True)
        out.rename(pieces / "artifact")
        shutil.rmtree(pieces, ignore_errors=True)


def resolve_device(name: str) -> torch.device:
    """Look a device up; "auto" is CUDA, then MPS, then the CPU.

    With CUDA, torch's convolutions keep float32 from here on: as TensorFloat32, which is torch's default, they move
    float embeddings by a thousandth, and a simulation of integers twice as far from the integers.

    Raises:
        UsageError: the device is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():  # one of torchrun's processes
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    kind = name.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise UsageError(f"unknown device '{name}'; known: auto, {', '.join(there)}")
    if not there[kind]:
        raise UsageError(f"there is no {kind} device here; --device auto takes what there is")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no such device: '{name}'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no such device: '{name}'; there are {torch.cuda.device_count()}, counted from 0")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device

"""Where things run and where they may be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from d4c.errors import UsageError


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


def resolve_device(name: str) -> torch.device:
    """Look a device up; "auto" is CUDA, then MPS, then the CPU.

    Raises:
        UsageError: the device is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise UsageError(f"unknown device '{name}'; known: auto, {', '.join(there)}")
    if not there[kind]:
        raise UsageError(f"there is no {kind} device here; --device auto takes what there is")
    return torch.device(name)

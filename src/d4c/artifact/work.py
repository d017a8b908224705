"""What a long stage is given: a place for finished pieces, and an ear for how far it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from d4c.errors import UsageError

Report = Callable[[str, int, int], None]
Arrays = Mapping[str, NDArray[np.generic]]


def check_named(out: Path) -> None:
    """Raise `UsageError` where a folder to be made has no name of its own, as "." and ".." have none."""
    if out.name in ("", ".."):
        raise UsageError(f"--out {out}: name the folder to be made")


@contextlib.contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """Give another name to write a file under; it gets its own when the `with` ends well, whole or not at all.

    Its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    yield temporary
    temporary.replace(path)


def _silent(label: str, done: int, total: int) -> None:
    pass


class Work:
    """Remembers finished pieces of a stage in files, so that a killed run loses at most the current piece.

    Args:
        folder: where the pieces lie, made when the first is kept; None forgets everything.
        report: called with a label, the number of steps done and their total.
    """

    def __init__(self, folder: Path | None = None, report: Report = _silent) -> None:
        self.folder, self.report = folder, report

    def within(self, name: str) -> Work:
        """The same for a part of the work, in a folder of its own."""
        return Work(None if self.folder is None else self.folder / name, self.report)

    def recall(self, piece: str) -> Arrays | None:
        """A piece that was kept, or None."""
        if self.folder is None:
            return None
        with contextlib.suppress(OSError, SafetensorError):
            return load_file(self.folder / f"{piece}.safetensors")
        return None

    def keep(self, piece: str, arrays: Arrays) -> None:
        """Keep a piece; it appears whole or not at all."""
        if self.folder is None:
            return
        with appearing_whole(self.folder / f"{piece}.safetensors") as path:
            save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)


def user_cache() -> Path:
    """Where what several runs share is kept: `$D4C_CACHE`, else `d4c` below `$XDG_CACHE_HOME` or `~/.cache`."""
    if os.environ.get("D4C_CACHE"):
        return Path(os.environ["D4C_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "d4c"

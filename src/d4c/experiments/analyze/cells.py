"""Measured cells, one small JSON file each, so that an interrupted analysis continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d4c.artifact.work import appearing_whole
from d4c.pipeline.stages import hash_of

Cell = dict[str, Any]
FOLDER = "cells"


class Cells:
    """Finds measured cells again by what determines them.

    Args:
        out: the analysis' folder; cells lie in `out/cells/PART/NAME-KEY.json`.
        environment: what determines every cell: model, image sets, seed, threads, versions.
    """

    def __init__(self, out: Path, environment: Sequence[Any]) -> None:
        self.folder, self.environment = out / FOLDER, hash_of(*environment)

    def path(self, part: str, name: str, settings: Sequence[Any]) -> Path:
        """Where a cell lies, whether it was measured or not."""
        return self.folder / part / f"{name}-{hash_of(self.environment, part, name, *settings)[:16]}.json"

    def get(self, part: str, name: str, settings: Sequence[Any], measure: Callable[[], Cell]) -> Cell:
        """A cell that was measured earlier, or `measure` it now; its file appears whole or not at all."""
        path = self.path(part, name, settings)
        found = _read(path)
        if found is not None:
            return found
        text = json.dumps(measure(), indent=1, allow_nan=False)
        write_atomically(path, text)
        cell: Cell = json.loads(text)
        return cell


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in one rename."""
    with appearing_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read(path: Path) -> Cell | None:
    """A saved cell; None where there is none, or a broken one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

"""How a long command says how far it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from d4c.artifact.work import Report  # loads NumPy, which `d4c --help` should not wait for


@contextmanager
def progress() -> Iterator[Report]:
    """Draw a bar with the time left for each stage on stderr; where that is no terminal, a line when one begins."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (TextColumn("{task.description:<18}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total or None)
            bars.update(tasks[label], completed=done)

        yield report


def _lines() -> Report:
    seen: set[str] = set()

    def report(label: str, _: int, total: int) -> None:
        if label not in seen:
            seen.add(label)
            sys.stderr.write(f"{label} ({total} steps)\n" if total else f"{label}\n")
            sys.stderr.flush()

    return report

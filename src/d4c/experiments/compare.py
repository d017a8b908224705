"""`d4c compare`: all cells of a grid, what they share made once, in several processes, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch

from d4c.artifact.work import Report
from d4c.errors import D4CError, RecipeError, RunError
from d4c.experiments.cells import (
    Place,
    Setup,
    image_file,
    image_set,
    judges,
    run_cell,
    set_up,
    text_folder,
    text_tower,
)
from d4c.experiments.grid import REAL, Cell, Grid
from d4c.experiments.ray_executor import RayExecutor

Kind = Literal["images", "text", "cell"]
LABELS: dict[Kind, str] = {"images": "image sets", "text": "text towers", "cell": "cells"}


@dataclass(frozen=True)
class Task:
    """A piece of the work that one process does by itself: an image set, a text tower, or a cell."""

    kind: Kind
    grid: Grid
    cell: Cell
    place: Place
    threads: int


@contextmanager
def workers(*, jobs: int, threads: int, ray: bool, gpu: bool) -> Iterator[Executor]:
    """Processes for `run`: `jobs` of this machine, or as many as a Ray cluster has room for.

    Args:
        threads: of each process; gpu: whether each takes a GPU of the cluster.

    Raises:
        MissingExtraError, RunError: there is no Ray.
    """
    executor = RayExecutor(threads, gpu=gpu) if ray else ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def run(grid: Grid, place: Place, executor: Executor, *, threads: int, report: Report) -> list[dict[str, Any]]:
    """Do what is not done yet: first what cells share, then the cells.

    Args:
        executor: of processes that see the place's folders; threads: of each process.
        report: called with the kind of work, pieces done and their total.

    Returns:
        a result for every cell (`cells.run_cell`), in the order of the grid.

    Raises:
        RunError: a cell failed; the others are finished first.
    """
    shared: dict[Kind, dict[Path, Cell]] = {"images": {}, "text": {}}  # by where it lies, a cell that needs it
    for cell in grid.cells:
        setup = _set_up(grid, cell, place)
        if setup is not None:
            shared["text"].setdefault(text_folder(setup), cell)
        if setup is not None and cell.method != REAL:
            shared["images"].setdefault(image_file(setup), cell)
    for kind, cells in shared.items():
        _all(kind, [Task(kind, grid, cell, place, threads) for cell in cells.values()], executor, report)
    return _all("cell", [Task("cell", grid, cell, place, threads) for cell in grid.cells], executor, report)


def _set_up(grid: Grid, cell: Cell, place: Place) -> Setup | None:
    """The cell, None if the model cannot have the method; what else is wrong ends the command before any work."""
    try:
        return set_up(grid, cell, place)
    except RecipeError:
        return None


def _all(kind: Kind, tasks: list[Task], executor: Executor, report: Report) -> list[dict[str, Any]]:
    results: dict[int, dict[str, Any]] = {}
    failures = []
    report(LABELS[kind], 0, len(tasks))  # the first may take half an hour
    futures = {executor.submit(do, task): i for i, task in enumerate(tasks)}
    for future in as_completed(futures):
        error = future.exception()
        if error is not None:
            failures.append(error)
        else:
            results[futures[future]] = future.result()
        report(LABELS[kind], len(results) + len(failures), len(tasks))
    if failures:
        raise RunError(
            f"{len(failures)} of {len(tasks)} {LABELS[kind]} failed; the first: {failures[0]}"
        ) from failures[0]
    return [results[i] for i in range(len(tasks))]


def do(task: Task) -> dict[str, Any]:
    """Do one task in this process.

    Raises:
        RunError: with the cell's name; D4C's own errors need not survive the way back.
    """
    torch.set_num_threads(task.threads)
    try:
        if task.kind == "cell":
            return run_cell(task.grid, task.cell, task.place, _silent)
        setup = set_up(task.grid, task.cell, task.place)
        if task.kind == "images":
            image_set(setup, _silent)
        else:
            text_tower(setup, judges(setup), _silent)
        return {}
    except D4CError as error:
        raise RunError(f"{task.cell.name}: {error}") from None


def _silent(label: str, done: int, total: int) -> None:
    pass

"""`d4c compare`: all cells of a grid, what they share made once, in several processes, resumable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch

from d4c.artifact.work import Report
from d4c.errors import D4CError, RecipeError, RunError
from d4c.experiments.cells import Place, image_set, judges, run_cell, set_up, text_folder, text_tower
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
    folders = {cell: folder for cell in grid.cells if (folder := _text_folder(grid, cell, place))}
    of_folders = {folder: cell for cell, folder in folders.items()}
    shared: dict[Kind, Iterable[Cell]] = {"images": _sharing_images(grid, folders), "text": of_folders.values()}
    for kind, cells in shared.items():
        _all(kind, [Task(kind, grid, cell, place, threads) for cell in cells], executor, report)
    return _all("cell", [Task("cell", grid, cell, place, threads) for cell in grid.cells], executor, report)


def _text_folder(grid: Grid, cell: Cell, place: Place) -> Path | None:
    """Where the cell's text tower lies, None if the model cannot have the method.

    What else is wrong ends the command before any work.
    """
    try:
        return text_folder(set_up(grid, cell, place))
    except RecipeError:
        return None


def _sharing_images(grid: Grid, cells: Iterable[Cell]) -> Iterable[Cell]:
    """A cell for each image set."""
    return {(c.model, c.method, c.seed, grid.recipe(c).synthesize): c for c in cells if c.method != REAL}.values()


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

"""From folders to figures: make the variants, weigh each, time all in turn."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.artifact.work import Report
from d4c.errors import RunError
from d4c.evaluate.agreement import tower_error, unit
from d4c.experiments.bench.inputs import Judges
from d4c.experiments.bench.session import Graph

LOADS = 3
TIMED, JUDGED = "timed.npz", "judged.npz"
Embeddings = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        batches: sizes; threads: counts, 0 for all; rounds: in which every graph is timed once.
    """

    batches: tuple[int, ...]
    threads: tuple[int, ...]
    rounds: int


@dataclass(frozen=True)
class Tower:
    """What is measured of one tower.

    Args:
        graphs: the first is what others are compared with; failed: why a variant could not be made, by name.
        reference: float embeddings by set, or None where there is no float model.
        normalized: whether embeddings have length 1.
    """

    kind: str
    graphs: Sequence[Graph]
    failed: Mapping[str, str]
    reference: Embeddings | None
    normalized: bool = False


def measure(tower: Tower, judges: Judges, plan: Plan, work: Path, report: Report) -> dict[str, Any]:
    """Weigh every graph in a process of its own, then time those that run in turn in one process.

    Args:
        work: a folder for inputs and results, removed in the end.

    Returns:
        `variants`: by name `file_bytes`, `load_seconds`, `load_wall_seconds`, `before_bytes`, `loaded_bytes`,
        `peak_bytes`, `centred_error` by set (None without a reference) and `runs`: for each number of threads and size
        of batch `median_ms`, `p95_ms`, `per_second`, `ratio` (the first graph's median / this one's) and the `clock`;
        `failed`: reasons by name; `tokens`: of the longest text of each batch.

    Raises:
        RunError: the first graph does not run.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    timed = {str(batch): judges.timed(tower.kind, batch) for batch in plan.batches}
    np.savez(work / TIMED, **timed)  # type: ignore[arg-type]
    np.savez(work / JUDGED, **judges.batches(tower.kind))  # type: ignore[arg-type]
    failed = dict(tower.failed)
    weighed: dict[str, dict[str, Any]] = {}
    label = f"{tower.kind}: memory, error"
    report(label, 0, len(tower.graphs))
    for i, graph in enumerate(tower.graphs):
        found, embeddings = _weigh(graph, work)
        if "error" in found:
            failed[graph.name] = found["error"]
        else:
            weighed[graph.name] = found | {"centred_error": _errors(embeddings, tower)}
        report(label, i + 1, len(tower.graphs))
    running = [graph for graph in tower.graphs if graph.name in weighed]
    first = tower.graphs[0].name
    if first in failed:
        raise RunError(f"{tower.kind} tower, {first}: {failed[first]}")
    for i, threads in enumerate(plan.threads):
        report(f"{tower.kind}: speed", i, len(plan.threads))
        found = _worker("time", running, work, timed=TIMED, threads=threads, rounds=plan.rounds)
        if "error" in found:
            raise RunError(f"{tower.kind} tower: {found['error']}")
        for name, runs in figures(found["seconds"], first, threads).items():
            weighed[name].setdefault("runs", []).extend(runs)
    report(f"{tower.kind}: speed", len(plan.threads), len(plan.threads))
    shutil.rmtree(work)
    tokens = {size: int(x.shape[1]) for size, x in timed.items()} if tower.kind == "text" else {}
    return {"variants": weighed, "failed": failed} | ({"tokens": tokens} if tokens else {})


def _weigh(graph: Graph, work: Path) -> tuple[dict[str, Any], Embeddings]:
    """Figures of one graph, load times of several processes, and its embeddings by batch."""
    found = _worker("weigh", [graph], work, timed=TIMED, judged=JUDGED)
    if "error" in found:
        return found, {}
    with np.load(work / "job.result.npz") as file:
        embeddings = {name: file[name] for name in file.files}
    loads = [found, *(_worker("weigh", [graph], work) for _ in range(LOADS - 1))]
    medians = {key: statistics.median(load[key] for load in loads) for key in ("load_seconds", "load_wall_seconds")}
    return {"file_bytes": graph.file_bytes, **found, **medians}, embeddings


def _worker(
    task: str, graphs: Sequence[Graph], work: Path, *, timed: str | None = None, judged: str | None = None,
    threads: int = 1, rounds: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Do a job of `worker` in a process of its own; `timed` and `judged` are files in `work`."""
    result = work / "job.result.json"
    result.unlink(missing_ok=True)
    inputs = {key: None if name is None else str(work / name) for key, name in (("timed", timed), ("judged", judged))}
    job = {"task": task, "graphs": [dataclasses.asdict(g) for g in graphs], "threads": threads, "rounds": rounds}
    (work / "job.json").write_text(json.dumps(job | inputs), encoding="utf-8")
    command = [sys.executable, "-m", "d4c.experiments.bench.worker", str(work / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result.exists():
        said = " ".join(done.stderr.split())[-200:]
        return {"error": f"the measuring process ended with code {done.returncode}: {said}"}
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _errors(embeddings: Embeddings, tower: Tower) -> dict[str, float] | None:
    """Centred error by set."""
    if tower.reference is None:
        return None
    errors = {}
    for name, z in tower.reference.items():
        batches = sorted(key for key in embeddings if key.rpartition(" ")[0] == name)
        found = np.concatenate([embeddings[key] for key in batches])
        z, found = (unit(z), unit(found)) if tower.normalized else (z, found)
        errors[name] = tower_error(z, found).centred_error
    return errors


def figures(
    seconds: Mapping[str, Mapping[str, list[float]]], first: str, threads: int
) -> dict[str, list[dict[str, Any]]]:
    """Figures of times, by variant, one a size of batch.

    Args:
        seconds: one a round, by variant and size of batch; first: the variant that others are compared with.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, by_batch in seconds.items():
        for batch, values in by_batch.items():
            median = statistics.median(values)
            found.setdefault(name, []).append(
                {
                    "threads": threads,
                    "batch": int(batch),
                    "clock": "processor" if threads == 1 else "wall",
                    "median_ms": 1000 * median,
                    "p95_ms": 1000 * float(np.quantile(values, 0.95)),
                    "per_second": int(batch) / median,
                    "ratio": statistics.median(seconds[first][batch]) / median,
                }
            )
    return found


def versions() -> dict[str, str]:
    """Of what decides on speed; libraries that are not installed are left out."""
    found = {}
    for name in ("d4c", "onnxruntime", "openvino", "onnx", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

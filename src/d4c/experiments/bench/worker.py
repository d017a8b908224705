"""What runs in a process of its own: weighing one graph, or timing several in turn.

    python -m d4c.experiments.bench.worker JOB.json

JOB.json names the task, the graphs and files of inputs; the result is written beside it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.experiments.bench.session import Graph, Run, open_graph, require

WARM_UP = 2
REST = 0.01  # seconds in which threads of the graph before stop waiting for work
Arrays = Mapping[str, NDArray[Any]]


def in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float], rest: float = 0.0
) -> dict[str, list[float]]:
    """Call every function once a round, in the same order, and take the time of each call.

    Args:
        rest: seconds to wait before each call.

    Returns:
        seconds by name, one a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(rest)
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def time_graphs(graphs: list[Graph], inputs: Arrays, threads: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Time graphs in turn: processor time of one thread, else what a clock on the wall says.

    Args:
        inputs: by the size of the batch.

    Returns:
        seconds by name of the graph and size of the batch.
    """
    opened = {graph.name: (graph, open_graph(graph, threads)) for graph in graphs}
    clock, rest = (time.process_time, 0.0) if threads == 1 else (time.perf_counter, REST)
    seconds: dict[str, dict[str, list[float]]] = {graph.name: {} for graph in graphs}
    for batch, x in inputs.items():
        runs = {name: _bound(run, graph.feed(x)) for name, (graph, run) in opened.items()}
        for name, found in in_turn(runs, rounds, clock, rest).items():
            seconds[name][batch] = found
    return seconds


def weigh(graph: Graph, timed: Path | None, judged: Path | None) -> tuple[dict[str, float], Arrays]:
    """Load a graph and run it, on one thread.

    Args:
        timed: batches to run before the peak of memory is read; judged: batches whose embeddings are wanted, which are
            read after it.

    Returns:
        `load_seconds` (processor time), `load_wall_seconds`; `before_bytes`, `loaded_bytes`: memory in use before and
        after loading; `peak_bytes`: the most after running. And embeddings by name.
    """
    require(graph.runtime)
    before = memory()[0]
    wall, cpu = time.perf_counter(), time.process_time()
    run = open_graph(graph, 1)
    found = {"load_seconds": time.process_time() - cpu, "load_wall_seconds": time.perf_counter() - wall}
    loaded = memory()[0]
    for x in _read(timed).values():
        for _ in range(WARM_UP):
            run(graph.feed(x))
    found |= {"before_bytes": before, "loaded_bytes": loaded, "peak_bytes": memory()[1]}
    return found, {name: run(graph.feed(x)) for name, x in _read(judged).items()}


def memory() -> tuple[int, int]:
    """Bytes that this process holds, and the most it ever held; where the first is not told, the second twice."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent held when it made this process
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        now, most = (1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))
        return now, most
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most


def _bound(run: Run, x: NDArray[Any]) -> Callable[[], object]:
    return lambda: run(x)


def _read(path: Path | None) -> Arrays:
    if path is None:
        return {}
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _do(job: Mapping[str, Any], result: Path) -> dict[str, Any]:
    graphs = [Graph(**{**data, "files": tuple(data["files"])}) for data in job["graphs"]]
    timed, judged = (None if job[key] is None else Path(job[key]) for key in ("timed", "judged"))
    if job["task"] == "time":
        return {"seconds": time_graphs(graphs, _read(timed), job["threads"], job["rounds"])}
    found, embeddings = weigh(graphs[0], timed, judged)
    np.savez(result.with_suffix(".npz"), **embeddings)  # type: ignore[arg-type]
    return dict(found)


def main(path: Path) -> None:
    """Do one job; what a runtime says against a graph is a result too."""
    result = path.with_suffix(".result.json")
    try:
        found = _do(json.loads(path.read_text(encoding="utf-8")), result)
    except Exception as error:  # the runtimes' own errors derive from Exception alone
        found = {"error": " ".join(str(error).split())[:300]}
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

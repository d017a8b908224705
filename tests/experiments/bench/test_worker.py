import dataclasses
import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from d4c.errors import MissingExtraError
from d4c.experiments.bench import session
from d4c.experiments.bench.session import Graph, open_graph
from d4c.experiments.bench.worker import WARM_UP, in_turn, main, memory


def graph_of(folder: Path, kind: str, storage: str) -> Graph:
    names = ("pixel_values", "image_embeds", "float32") if kind == "image" else ("input_ids", "text_embeds", "int64")
    return Graph(storage, "onnxruntime", (str(folder / f"{kind}.{storage}.onnx"),), *names)  # type: ignore[arg-type]


Arrays = dict[str, np.ndarray]


def job(
    folder: Path, task: str, graphs: list[Graph], timed: Arrays | None = None, judged: Arrays | None = None
) -> Path:
    about = {"task": task, "graphs": [dataclasses.asdict(g) for g in graphs], "threads": 1, "rounds": 3}
    for key, arrays in (("timed", timed), ("judged", judged)):
        about[key] = None if arrays is None else str(folder / f"{key}.npz")
        if arrays is not None:
            np.savez(folder / f"{key}.npz", **arrays)
    path = folder / "job.json"
    path.write_text(json.dumps(about))
    return path


def test_variants_are_timed_in_turn_and_each_call_by_itself() -> None:
    calls: list[str] = []
    now = [0.0]

    def takes(name: str, seconds: float) -> object:
        def run() -> None:
            calls.append(name)
            now[0] += seconds

        return run

    found = in_turn({"a": takes("a", 1.0), "b": takes("b", 0.25)}, 3, lambda: now[0])  # type: ignore[dict-item]
    assert calls == ["a"] * WARM_UP + ["b"] * WARM_UP + ["a", "b"] * 3
    assert found == {"a": [1.0, 1.0, 1.0], "b": [0.25, 0.25, 0.25]}


def test_timing_job_gives_a_time_for_each_graph_batch_and_round(exported: dict[str, Path], tmp_path: Path) -> None:
    graphs = [graph_of(exported["integer"], "image", storage) for storage in ("int8", "int4")]
    inputs = {str(batch): np.zeros((batch, 3, 32, 32), np.float32) for batch in (1, 3)}
    main(job(tmp_path, "time", graphs, inputs))
    seconds = json.loads((tmp_path / "job.result.json").read_text())["seconds"]
    assert {(n, b, len(v)) for n, by in seconds.items() for b, v in by.items()} == {
        (name, batch, 3) for name in ("int8", "int4") for batch in ("1", "3")
    }
    assert all(value > 0 for by in seconds.values() for values in by.values() for value in values)


def test_weighing_job_loads_no_torch_and_its_memory_counts_the_weights(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    ids = np.full((2, 9), 7, np.int64)
    graph = graph_of(exported["float"], "text", "float")
    path = job(tmp_path, "weigh", [graph], {"1": ids[:1]}, {"texts 000000": ids})
    code = f"""
import sys
from pathlib import Path
from d4c.experiments.bench.worker import main
main(Path({str(path)!r}))
assert "torch" not in sys.modules and "onnx" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    found = json.loads((tmp_path / "job.result.json").read_text())
    weights = 49408 * 32 * 4  # the token embedding
    assert found["loaded_bytes"] - found["before_bytes"] > weights
    assert found["peak_bytes"] >= found["loaded_bytes"]
    assert found["load_seconds"] > 0
    with np.load(tmp_path / "job.result.npz") as file:
        assert file.files == ["texts 000000"]
        assert np.array_equal(file["texts 000000"], open_graph(graph, 1)(ids))


def test_a_graph_that_does_not_load_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "image.int8.onnx").write_bytes(b"no graph")
    main(job(tmp_path, "weigh", [graph_of(tmp_path, "image", "int8")]))
    assert "image.int8.onnx" in json.loads((tmp_path / "job.result.json").read_text())["error"]


def test_ids_become_what_the_graph_wants() -> None:
    ids = np.array([[5, 6, 7]])
    fed = Graph("g", "onnxruntime", ("f",), "text", "embedding", "int32", 5).feed(ids)
    assert fed.dtype == np.int32
    assert fed.tolist() == [[5, 6, 7, 0, 0]]


def test_memory_is_of_this_process() -> None:
    now, most = memory()
    with mmap.mmap(-1, 50_000_000) as block:  # numpy could be given pages that the process already holds
        np.frombuffer(block, np.uint8).fill(1)
        assert memory()[0] >= now + len(block) - 4_000_000
        assert memory()[1] >= most


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_runtime_names_its_extra(runtime: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(MissingExtraError, match=rf"d4c\[{extra}\]"):
        session.require(runtime)  # type: ignore[arg-type]

from pathlib import Path

import numpy as np
import pytest

from d4c.errors import RunError
from d4c.experiments.bench import run
from d4c.experiments.bench.inputs import Judges, text_lengths
from d4c.experiments.bench.run import Plan, Tower, figures, measure
from d4c.inputs import Tokenizer
from experiments.bench.test_worker import graph_of


@pytest.fixture
def judges(exported: dict[str, Path]) -> Judges:
    pixels = np.random.default_rng(0).standard_normal((10, 3, 32, 32)).astype(np.float32)
    tokenizer = Tokenizer.from_folder(exported["float"])
    return Judges({"noise": pixels}, tokenizer(["a", "a cat and a dog"]), tokenizer, False)


def silent(label: str, done: int, total: int) -> None:
    pass


def test_figures_by_hand() -> None:
    seconds = {"fp32": {"8": [0.4, 0.2, 0.3]}, "int8": {"8": [0.1, 0.1, 0.3]}}
    found = figures(seconds, "fp32", 1)
    # medians 0.3 and 0.1; the 95th percentile lies 0.9 of the way from the second to the third of three sorted values
    assert found["fp32"] == [
        {"threads": 1, "batch": 8, "clock": "processor", "median_ms": 300, "p95_ms": pytest.approx(390),
         "per_second": pytest.approx(8 / 0.3), "ratio": 1}
    ]  # fmt: skip
    (int8,) = found["int8"]
    assert int8["ratio"] == pytest.approx(3)
    assert int8["per_second"] == pytest.approx(80)
    assert int8["p95_ms"] == pytest.approx(280)
    assert figures(seconds, "fp32", 0)["int8"][0]["clock"] == "wall"


def test_batches_cover_every_set_and_texts_are_as_long_as_the_longest(judges: Judges) -> None:
    assert {name: x.shape[0] for name, x in judges.batches("image").items()} == {"noise 000000": 8, "noise 000008": 2}
    assert text_lengths(judges.ids, judges.tokenizer).tolist() == [3, 7]
    assert judges.batches("text")["texts 000000"].shape == (2, 7)
    assert judges.timed("text", 1).shape == (1, 3)
    assert judges.timed("text", 5).shape == (5, 7)
    assert np.array_equal(judges.timed("text", 5)[4], judges.ids[0, :7])
    whole = Judges(judges.images, judges.ids, judges.tokenizer, True)
    assert whole.timed("text", 1).shape == (1, 77)


def test_errors_are_centred_and_a_graph_without_reference_has_none(
    exported: dict[str, Path], judges: Judges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LOADS", 1)
    graph = graph_of(exported["float"], "image", "float")
    from d4c.experiments.bench.session import open_graph

    z = np.concatenate([open_graph(graph, 1)(x) for x in judges.batches("image").values()])
    spread = np.linalg.norm(z - z.mean(axis=0))
    shifted = z + 0.5 * spread / np.sqrt(z.size)  # off by half the spread
    plan = Plan((2,), (1,), 2)
    tower = Tower("image", [graph], {}, {"noise": shifted})
    found = measure(tower, judges, plan, tmp_path / "work", silent)["variants"]["float"]
    assert found["centred_error"]["noise"] == pytest.approx(0.5, rel=1e-4)
    assert found["file_bytes"] == (exported["float"] / "image.float.onnx").stat().st_size
    assert not (tmp_path / "work").exists()
    found = measure(Tower("image", [graph], {}, None), judges, plan, tmp_path / "work", silent)
    assert found["variants"]["float"]["centred_error"] is None
    assert [run["batch"] for run in found["variants"]["float"]["runs"]] == [2]


def test_a_variant_that_does_not_run_is_told_and_the_first_must(
    exported: dict[str, Path], judges: Judges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LOADS", 1)
    (tmp_path / "image.int8.onnx").write_bytes(b"no graph")
    good, bad = graph_of(exported["float"], "image", "float"), graph_of(tmp_path, "image", "int8")
    found = measure(Tower("image", [good, bad], {"static": "why"}, None), judges, Plan((1,), (1,), 1), tmp_path / "w",
                    silent)  # fmt: skip
    assert list(found["variants"]) == ["float"]
    assert found["failed"]["static"] == "why"
    assert "image.int8.onnx" in found["failed"]["int8"]
    with pytest.raises(RunError, match=r"image tower, int8: .*image.int8.onnx"):
        measure(Tower("image", [bad, good], {}, None), judges, Plan((1,), (1,), 1), tmp_path / "w", silent)

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_retrieval as clip_benchmark
from PIL import Image

from d4c.errors import RunError
from d4c.evaluate import CaptionTask, Retrieval, paired_retrieval, result_json, retrieve
from d4c.evaluate.retrieval import first_hits, ranked
from evaluate.painter import COLOURS, SIZE, Names, Oracle, Painter, encoded, load, silent, write_set

# webdataset leaves its shards to the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def test_first_hits_by_hand() -> None:
    scores = np.array([
        [0.1, 0.9, 0.5],  # the right one, 2, stands second
        [0.3, 0.3, 0.3],  # among equals, 1 stands second
        [0.7, 0.2, 0.9],  # 0 and 1 are right, 0 stands second
        [0.7, 0.2, 0.1],  # none is right
        [0.7, np.nan, 0.1],  # the right one is no number
        [0.7, np.nan, 0.1],  # a wrong one is no number: it stands before 0
    ])  # fmt: skip
    right = np.array([[0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0]], bool)
    assert first_hits(scores, right).tolist() == [1, 1, 1, 3, 3, 1]


@pytest.mark.parametrize("seed", range(5))
def test_first_hits_equal_a_stable_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(6, size=(40, 9)).astype(np.float32)  # many equal
    right = rng.random((40, 9)) < 0.3
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [next((i for i, c in enumerate(row) if right[q, c]), 9) for q, row in enumerate(order)]
    assert first_hits(scores, right).tolist() == expected


def test_recalls_by_hand() -> None:
    # Three images along three axes. The captions of the first: one right, one that looks like the second image most,
    # then like the first; the caption of the second likes the third, then the second; the third has none.
    images = np.eye(3, dtype=np.float32) * np.array([[1], [2], [3]], np.float32)  # lengths do not count
    texts = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8]], np.float32)
    found = ranked(images, texts, np.array([0, 0, 1]))
    assert found.image_ranks.tolist() == [0, 1, 1]
    # The first image finds its first caption first; the second its own after the first image's (0.6 < 0.8).
    assert found.text_ranks.tolist() == [0, 1, 3]
    assert found.metrics([1, 2, 50]) == pytest.approx({
        "image_retrieval_recall@1": 1 / 3, "text_retrieval_recall@1": 1 / 3,
        "image_retrieval_recall@2": 1, "text_retrieval_recall@2": 2 / 3,
        "image_retrieval_recall@50": 1, "text_retrieval_recall@50": 2 / 3,
    })  # fmt: skip


def test_embeddings_that_are_no_numbers_find_nothing() -> None:
    nothing = np.full((8, 4), np.nan, np.float32)
    assert set(ranked(nothing, nothing, np.arange(8)).metrics([1, 5, 100]).values()) == {0}


class Batches:
    """A task in batches of seven, as CLIP_benchmark wants it."""

    def __init__(self, task: CaptionTask) -> None:
        self.samples = list(task.samples)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, list[list[str]]]]:
        for i in range(0, len(self.samples), 7):
            pixels, captions = zip(*self.samples[i : i + 7], strict=True)
            yield torch.from_numpy(np.stack(pixels)), [list(c) for c in captions]


def captioned(folder: Path) -> Path:
    """Thirty noisy pictures around colours, each with one to five captions that are often right."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(30):
        name, colour = list(COLOURS.items())[rng.integers(6)]
        picture = np.clip(np.array(colour) + rng.normal(0, 90, (10, 14, 3)), 0, 255).astype(np.uint8)
        said = [rng.choice([name, name, *COLOURS]) for _ in range(rng.integers(1, 6))]
        lines = [rng.choice(["a {c} thing", "the {c} thing", "{c}"]).replace("{c}", c) for c in said]
        samples.append((encoded(Image.fromarray(picture)), "\n".join(lines)))
    return write_set(folder, samples, label="txt", names=None, templates=None, kind="retrieval")


@pytest.mark.parametrize("blind", [(), (1,)])
def test_the_whole_evaluation_equals_clip_benchmarks(blind: tuple[int, ...], tmp_path: Path) -> None:
    captioned(tmp_path / "wds_said")
    painter, task = Painter(blind), load(tmp_path, "wds/said")
    # Many captions are the same text, and ties are broken in no order by CLIP_benchmark: tell them apart.
    rng = np.random.default_rng(1)

    class Nudged(Painter):
        def encode_text(self, ids):  # type: ignore[no-untyped-def]
            nudge = np.sin(ids[:, 2:] * np.array([1.0, 2.0, 3.0])) / 50  # [text, channel]
            return (painter.encode_text(ids[:, :2]) + nudge).astype(np.float32)

        @property
        def tokenizer(self):  # type: ignore[no-untyped-def]
            return lambda texts: np.concatenate([Names()(texts), rng.integers(1000, size=(len(texts), 1))], axis=1)

    nudged = Nudged(blind)
    found = retrieve({"m": nudged}, task, silent, batch=7)["m"].metrics([1, 5, 10])
    rng = np.random.default_rng(1)
    expected = clip_benchmark.evaluate(
        Oracle(nudged), Batches(task), lambda texts: torch.from_numpy(nudged.tokenizer(texts)), "cpu", amp=False,
        recall_k_list=[1, 5, 10],
    )  # fmt: skip
    assert found == pytest.approx(expected)
    assert 0 < expected["image_retrieval_recall@5"] < expected["image_retrieval_recall@10"] < 1
    record = result_json(task, "tiny", found)
    assert (record["task"], set(record)) == ("zeroshot_retrieval", {"dataset", "model", "task", "metrics"})
    assert json.loads(json.dumps(record)) == record


def test_results_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    captioned(tmp_path / "wds_said")
    task = load(tmp_path, "wds/said")
    one, all_ = (retrieve({"m": Painter()}, task, silent, batch=b)["m"] for b in (1, 64))
    assert one.image_ranks.tolist() == all_.image_ranks.tolist()
    assert one.text_image.tolist() == all_.text_image.tolist()


def test_an_image_without_captions_is_a_candidate_and_finds_nothing() -> None:
    pixels = [np.full((3, SIZE, SIZE), v, np.float32) for v in (1, -1)]
    task = CaptionTask("t", [(pixels[0], []), (pixels[1], ["red"])], 2)
    found = retrieve({"m": Painter()}, task, silent, batch=1)["m"]
    assert len(found.text_ranks) == 2
    assert found.metrics([5])["text_retrieval_recall@5"] == 0.5


@pytest.mark.parametrize("samples", [[], [(np.zeros((3, SIZE, SIZE), np.float32), [])]])
def test_a_set_without_captions_is_the_runs_error(samples: list[object]) -> None:
    with pytest.raises(RunError, match="t: the set is empty"):
        retrieve({"m": Painter()}, CaptionTask("t", samples, 0), silent)  # type: ignore[arg-type]


def test_paired_figures_by_hand() -> None:
    # Two images with two captions each; the captions of the first are lost together, nothing else changes.
    owner = np.array([0, 0, 1, 1])
    before = Retrieval(np.array([0, 0, 0, 3]), np.array([0, 1]), owner)
    after = Retrieval(np.array([1, 1, 0, 3]), np.array([0, 1]), owner)
    found = paired_retrieval(before, after, [1])
    # Differences -1 -1 0 0, mean -1/2; by image the deviations are -1 and 1: sqrt(2/1 · 2 / 16) = 1/2.
    assert found == pytest.approx({
        "image_retrieval_recall@1_difference": -0.5, "image_retrieval_recall@1_standard_error": 0.5,
        "image_retrieval_recall@1_changed_hits": 0.5, "text_retrieval_recall@1_difference": 0,
        "text_retrieval_recall@1_standard_error": 0, "text_retrieval_recall@1_changed_hits": 0,
    })  # fmt: skip

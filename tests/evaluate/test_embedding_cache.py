import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from d4c.evaluate import CaptionTask, EmbeddingCache, classify, retrieve
from evaluate.painter import COLOURS, SIZE, TEMPLATES, Painter, flat, load, silent, write_set

# webdataset leaves its shards to the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@dataclass(frozen=True)
class Counted(Painter):
    """Says how much it was asked to encode."""

    calls: list[str] = field(default_factory=list)

    def encode_image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls.extend(["image"] * len(pixels))
        return super().encode_image(pixels)

    def encode_text(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.calls.extend(["text"] * len(ids))
        return super().encode_text(ids)


def evaluated(root: Path, folder: Path | None, **arguments: object) -> tuple[NDArray[np.float32], list[str]]:
    """Logits, and what the encoder had to encode for them."""
    float_, quantized = Counted(), Counted(blind=(0,))
    found = classify(
        {"float": float_, "quantized": quantized}, load(root, **arguments), silent, batch=4,
        caches={"float": EmbeddingCache(folder)},
    )  # fmt: skip
    assert len(quantized.calls) == len(found["float"].labels) + 6 * 3  # never kept
    return found["float"].logits, float_.calls


def test_a_second_evaluation_computes_only_what_is_not_kept(root: Path, tmp_path: Path) -> None:
    first, made = evaluated(root, tmp_path / "kept")
    assert made.count("image") == 10
    assert made.count("text") == len(COLOURS) * len(TEMPLATES)
    second, made = evaluated(root, tmp_path / "kept")
    assert made == []
    assert second.tobytes() == first.tobytes() == evaluated(root, None)[0].tobytes()


def test_changed_data_is_a_miss_even_with_the_same_names_sizes_and_times(root: Path, tmp_path: Path) -> None:
    evaluated(root, tmp_path / "kept")
    shard = root / "wds_colours" / "test" / "0.tar"
    before = shard.stat()
    (root / "wds_colours").rename(root / "old")
    write_set(root / "wds_colours", [(flat((i, 2, 3)), "0") for i in range(10)])
    assert shard.stat().st_size == before.st_size
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    logits, made = evaluated(root, tmp_path / "kept")
    assert made == ["image"] * 10
    assert logits.tobytes() == evaluated(root, None)[0].tobytes()


def test_other_templates_are_a_miss_for_texts_alone(root: Path, tmp_path: Path) -> None:
    evaluated(root, tmp_path / "kept")
    logits, made = evaluated(root, tmp_path / "kept", templates=[TEMPLATES[0], TEMPLATES[2], TEMPLATES[2]])
    assert made == ["text"] * 18
    assert logits.tobytes() != evaluated(root, None)[0].tobytes()
    swapped = dict(zip(COLOURS, reversed([[f"a {c} thing"] * 3 for c in COLOURS]), strict=True))
    assert evaluated(root, tmp_path / "kept", templates=swapped)[1] == ["text"] * 18


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "folder"])
def test_a_broken_file_is_made_again(damage: str, root: Path, tmp_path: Path) -> None:
    first, _ = evaluated(root, tmp_path / "kept")
    for path in (tmp_path / "kept").iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes({"cut": data[:-5], "flip": data, "empty": b""}.get(damage, b""))
        if damage == "folder":
            path.unlink()
            path.mkdir()
    second, made = evaluated(root, tmp_path / "kept")
    assert (made.count("image"), made.count("text")) == (10, 18)
    assert second.tobytes() == first.tobytes()
    if damage != "folder":
        assert evaluated(root, tmp_path / "kept")[1] == []


def test_a_folder_that_cannot_be_written_is_done_without(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert evaluated(root, tmp_path / "file" / "kept")[0].tobytes() == evaluated(root, None)[0].tobytes()


def test_nothing_unfinished_is_left(root: Path, tmp_path: Path) -> None:
    evaluated(root, tmp_path / "kept")
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} == {".safetensors"}
    # Three batches of four, four and two pictures, and one classifier.
    assert len(list((tmp_path / "kept").iterdir())) == 4


def test_captions_are_kept_too(tmp_path: Path) -> None:
    pixels = [np.full((3, SIZE, SIZE), v, np.float32) for v in (-1, 0.5, 1)]
    captions = [["a red thing", "blue"], ["the green thing"], ["pink"]]
    task = CaptionTask("t", list(zip(pixels, captions, strict=True)), 3)
    made, found = [], []
    for _ in range(2):
        encoder = Counted()
        found.append(retrieve({"m": encoder}, task, silent, 2, caches={"m": EmbeddingCache(tmp_path)})["m"])
        made.append(sorted(encoder.calls))
    assert made == [["image"] * 3 + ["text"] * 4, []]
    assert found[0].metrics([1, 2]) == found[1].metrics([1, 2])

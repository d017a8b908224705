"""Sets that CLIP_benchmark's own code reads, a few images each."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d4c.errors import RunError, UnknownNameError, UsageError
from d4c.evaluate import CaptionTask
from d4c.evaluate.data_sets import KNOWN_SETS
from evaluate.painter import COLOURS, Painter, flat, load

RED, BLUE = flat(COLOURS["red"]), flat(COLOURS["blue"])


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("subprocess.Popen", "urllib.request.urlopen", "os.system"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("started a download"))


def write_flickr(root: Path, name: str = "flickr8k") -> Path:
    root.mkdir(exist_ok=True)
    (root / "1.jpg").write_bytes(RED)
    (root / "2.jpg").write_bytes(BLUE)
    lines = ["image,caption", "1.jpg,A red thing, almost .", "1.jpg,Red .", "2.jpg,the blue"]
    (root / f"{name}_test_karpathy.txt").write_text("\n".join(lines) + "\n")
    return root


def write_coco(root: Path) -> Path:
    (root / "val2014").mkdir(parents=True)
    (root / "val2014" / "COCO_val2014_000000000042.jpg").write_bytes(RED)
    (root / "val2014" / "COCO_val2014_000000000073.jpg").write_bytes(BLUE)
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012}.jpg"} for i in (42, 73)]
    said = [(42, "A red thing."), (73, "the blue"), (42, "red")]
    annotations = [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(said)]
    (root / "coco_test_karpathy.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k"])
@pytest.mark.parametrize("place", [".", "named"])
def test_flickr_is_read_with_karpathys_lists(name: str, place: str, tmp_path: Path) -> None:
    write_flickr(tmp_path if place == "." else tmp_path / name, name)
    task = load(tmp_path, name)
    assert isinstance(task, CaptionTask)
    assert task.size == 2
    ((pixels, captions),) = task.batches(64)
    assert captions == [["A red thing, almost .", "Red ."], ["the blue"]]
    np.testing.assert_array_equal(pixels[:, :, 0, 0], [[1, -1, -1], [-1, -1, 1]])


def test_coco_captions_are_read_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = load(write_coco(tmp_path), "mscoco_captions")
    assert isinstance(task, CaptionTask)
    ((pixels, captions),) = task.batches(64)
    assert captions == [["A red thing.", "red"], ["the blue"]]
    assert len(pixels) == task.size == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "words"), [
    ("flickr8k", "flickr8k_test_karpathy.txt"), ("flickr30k", "flickr30k_test_karpathy.txt"),
    ("mscoco_captions", "val2014 and coco_test_karpathy.json"),
])  # fmt: skip
def test_captions_that_are_not_there_are_named_and_not_fetched(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{name}: not found below .*expected {words}"):
        load(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_picture_is_the_runs_error(tmp_path: Path) -> None:
    (write_flickr(tmp_path) / "2.jpg").unlink()
    with pytest.raises(RunError, match="flickr8k: an image cannot be read"):
        list(load(tmp_path, "flickr8k").batches(64))


def write_mnist(root: Path) -> None:
    """Two digits in MNIST's own files, where torchvision unpacks them."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images, labels = np.zeros((2, 28, 28), np.uint8), np.array([7, 2], np.uint8)
        images[1] = 255
        header = struct.pack(">4i", 0x803, 2, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 2) + labels.tobytes())


def test_other_sets_come_with_clip_benchmarks_lists(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    task = load(tmp_path, "mnist")
    assert (task.classnames[7], task.templates) == ("7", ('a photo of the number: "{c}".',))
    pixels, labels = zip(*task.samples, strict=True)
    assert labels == (7, 2)
    assert [p[0, 0, 0] for p in pixels] == [-1, 1]
    with pytest.raises(UsageError, match="mnist: Only `train` and `test` split available"):
        load(tmp_path, "mnist", split="val")


@pytest.mark.parametrize("name", [n for n in KNOWN_SETS if "/" not in n])
def test_no_set_is_ever_fetched(name: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, RunError), match=name):
        list(load(tmp_path, name).batches(64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["imagenetv2", "objectnet", "sugar_crepe/add_att", "winoground", "tfds/x", "vtab/dtd"])
def test_sets_that_would_fetch_or_answer_other_questions_are_unknown(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="wds/NAME"):
        load(tmp_path, name)


def test_pictures_become_rgb_before_they_are_resized(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20))
    write_flickr(tmp_path)
    grey.save(tmp_path / "1.jpg")
    pixels, _ = next(iter(load(tmp_path, "flickr8k").samples))
    with Image.open(tmp_path / "1.jpg") as picture:
        np.testing.assert_array_equal(pixels, Painter().preprocess(picture.convert("RGB")))

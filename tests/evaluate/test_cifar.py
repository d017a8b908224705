"""Sets in the layouts that torchvision unpacks, a few images each."""

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from d4c.errors import RunError, UsageError
from d4c.evaluate import classify
from d4c.evaluate.tasks import class_texts
from evaluate.painter import SIZE, Painter, load, silent

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = ["aquarium_fish", "lawn_mower", "red_cup"]
PROTOCOLS = [2, 4, 5]


def pictures(num: int) -> np.ndarray:
    """[image, 3072] uint8, planes of red, green and blue."""
    return np.random.default_rng(num).integers(0, 256, (num, 3072), np.uint8)


def write_cifar10(root: Path, protocol: int = 2, **changes: Any) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batch = {"batch_label": "testing batch 1 of 1", "labels": [3, 8, 0, 9], "data": pictures(4), "filenames": ["a"] * 4}
    (folder / "test_batch").write_bytes(pickle.dumps(batch | changes, protocol))
    meta = {"num_cases_per_batch": 10000, "label_names": TEN, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return folder


def write_cifar100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    batch = {"filenames": ["a"] * 3, "fine_labels": [2, 0, 1], "coarse_labels": [0, 0, 0], "data": pictures(3)}
    (folder / "test").write_bytes(pickle.dumps(batch, 2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": FINE, "coarse_label_names": ["fish"]}, 2))
    return folder


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Any]:
    """Torchvision's reader of the test split, which would insist on the published files and on the training split."""
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return lambda name, root: {"cifar10": CIFAR10, "cifar100": CIFAR100}[name](root, False, Painter().preprocess)


@pytest.mark.parametrize(("name", "write"), [("cifar10", write_cifar10), ("cifar100", write_cifar100)])
def test_images_labels_and_names_are_torchvisions(
    name: str, write: Callable[[Path], Path], torchvision: Callable[[str, Path], Any], tmp_path: Path
) -> None:
    write(tmp_path)
    task, expected = load(tmp_path, name), torchvision(name, tmp_path)
    assert task.classnames == tuple(expected.classes)
    assert task.size == len(expected)
    for _ in range(2):  # it can be walked through again
        for (pixels, label), (other, other_label) in zip(task.samples, expected, strict=True):
            assert label == other_label
            np.testing.assert_array_equal(pixels, other)
            assert pixels.shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickles_of_every_age_are_read(protocol: int, tmp_path: Path) -> None:
    write_cifar10(tmp_path, protocol)
    assert [label for _, label in load(tmp_path, "cifar10").samples] == [3, 8, 0, 9]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_texts_are_the_eighteen_of_clip_benchmark_with_names_verbatim(name: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    write_cifar100(tmp_path)
    texts = class_texts(load(tmp_path, name))
    first = {"cifar10": "airplane", "cifar100": "aquarium_fish"}[name]
    assert len(texts[0]) == 18
    assert texts[0][:2] == [f"a photo of a {first}.", f"a blurry photo of a {first}."]
    assert texts[0][9:] == [text.replace(f"a {first}", f"the {first}").replace("of a ", "of the ")
                            for text in texts[0][:9]]  # fmt: skip


def test_the_set_below_the_root_and_the_original_archive_are_read(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "whole")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
    before = sorted(tmp_path.rglob("*"))
    archived = list(load(tmp_path / "data", "cifar10").samples)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked
    (tmp_path / "whole").rename(tmp_path / "cifar10")
    for (pixels, label), (other, other_label) in zip(archived, load(tmp_path, "cifar10").samples, strict=True):
        assert label == other_label
        assert pixels.tobytes() == other.tobytes()


def test_the_training_split_is_read_only_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    for i in range(1, 6):
        content = {"labels": [i, 0], "data": pictures(2)}
        (folder / f"data_batch_{i}").write_bytes(pickle.dumps(content))
    assert [label for _, label in load(tmp_path, "cifar10", split="train").samples] == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    with pytest.raises(UsageError, match="cifar10 has no split 'val'; it has test, train"):
        load(tmp_path, "cifar10", split="val")


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_what_is_not_there_is_named_and_not_fetched(
    name: str, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("started a download"))
    with pytest.raises(UsageError, match=f"{name}: not found below .*expected the folder {folder} or {folder[:8]}"):
        load(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_that_a_pickle_says_is_executed(protocol: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path, protocol, data=Bomb())
    with pytest.raises(RunError, match=r"test_batch: .*names posix.mkdir, which is no part of an array"):
        load(tmp_path, "cifar10")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("changes", [
    {"data": pictures(3)}, {"data": pictures(4).astype(np.float32)}, {"data": pictures(4)[:, :1000]}, {"data": "ab"},
    {"labels": None}, {"labels": [1, 2, 3, 10]}, {"labels": [1, 2, 3, "x"]},
])  # fmt: skip
def test_contents_that_are_no_images_with_labels_are_the_runs_error(changes: dict[str, Any], tmp_path: Path) -> None:
    write_cifar10(tmp_path, **changes)
    with pytest.raises(RunError, match=r"cifar-?10"):
        list(load(tmp_path, "cifar10").batches(64))


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    whole = (folder / "test_batch").read_bytes()
    for content in (whole[:5000], b"", b"not a pickle", pickle.dumps([1])):
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(RunError, match="test_batch: not the pickle that it should be"):
            load(tmp_path, "cifar10")
    (folder / "test_batch").write_bytes(whole)
    (folder / "batches.meta").unlink()
    with pytest.raises(RunError, match=r"batches.meta is missing"):
        load(tmp_path, "cifar10")


@pytest.mark.parametrize("damage", ["cut", "lacks"])
def test_a_broken_archive_is_the_runs_error(damage: str, tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "whole")
    (folder / "batches.meta").unlink() if damage == "lacks" else None
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(RunError, match="cifar-10-python"):
        load(tmp_path, "cifar10")


def test_a_colour_set_is_classified(tmp_path: Path) -> None:
    red, blue = (np.repeat([255 * (c == i) for c in range(3)], 1024).astype(np.uint8) for i in (0, 2))
    folder = write_cifar10(tmp_path, data=np.stack([red, blue, blue, red]), labels=[0, 1, 1, 1])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["red", "blue"]}))
    task = load(tmp_path, "cifar10", templates=["{c}"])
    assert classify({"m": Painter()}, task, silent)["m"].metrics["acc1"] == 0.75

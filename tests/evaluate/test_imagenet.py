"""ImageNet's archives and folders, a few images each."""

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision.datasets import ImageNet, imagenet

from d4c.errors import RunError, UsageError
from d4c.evaluate.tasks import class_texts
from evaluate.painter import Painter, encoded, load

# Synset names as the devkit has them; CLIP_benchmark calls the first "tench", the last "toilet paper".
SYNSETS = {
    "n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish", "Carassius auratus"),
    "n15075141": ("toilet tissue", "toilet paper", "bathroom tissue"),
}  # fmt: skip
# In the order of the validation images' numbers.
VAL = ["n15075141", "n01440764", "n15075141", "n01443537"]


def picture(i: int) -> bytes:
    mode = ["RGB", "L", "RGB", "CMYK"][i]
    noise = np.random.default_rng(i).integers(0, 256, (14, 11, 3), np.uint8)
    return encoded(Image.fromarray(noise).convert(mode), "jpg")


def write_prepared(root: Path, meta: bool = True) -> Path:
    """What torchvision leaves behind."""
    for i, wnid in enumerate(VAL):
        (root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        (root / "val" / wnid / f"ILSVRC2012_val_{i + 1:08}.JPEG").write_bytes(picture(i))
    if meta:
        torch.save((SYNSETS, VAL), root / "meta.bin")
    return root


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_archives(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives as they are published; the MD5 of these small ones is told to torchvision."""
    root.mkdir()
    rows = [(i + 1, wnid, ", ".join(words), "gloss", 0) for i, (wnid, words) in enumerate(SYNSETS.items())]
    rows.append((4, "n00000001", "entity", "gloss", 3))  # not a leaf
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    mat = io.BytesIO()
    scipy.io.savemat(mat, {"synsets": np.array(rows, dtype=fields)})
    truth = "".join(f"{list(SYNSETS).index(wnid) + 1}\n" for wnid in VAL)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", mat.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in (2, 0, 3, 1):  # in no order
            add(tar, f"ILSVRC2012_val_{i + 1:08}.JPEG", picture(i))
    known = {
        key: (file, hashlib.md5((root / file).read_bytes()).hexdigest() if (root / file).exists() else "")
        for key, (file, _) in imagenet.ARCHIVE_META.items()
    }
    monkeypatch.setattr(imagenet, "ARCHIVE_META", known)
    return root


def test_prepared_folders_are_read_as_torchvision_does(tmp_path: Path) -> None:
    task = load(write_prepared(tmp_path), "imagenet1k")
    expected = ImageNet(tmp_path, "val", transform=Painter().preprocess)
    assert task.size == len(expected) == 4
    for _ in range(2):  # it can be walked through again
        for (pixels, label), (other, other_label) in zip(task.samples, expected, strict=True):
            assert label == other_label
            np.testing.assert_array_equal(pixels, other)


def test_classes_have_the_curated_names_and_the_eighty_templates(tmp_path: Path) -> None:
    task = load(write_prepared(tmp_path), "imagenet1k")
    assert task.classnames == ("tench", "goldfish", "toilet paper")
    texts = class_texts(task)
    assert len(texts[0]) == 80
    assert texts[0][0] == "a bad photo of a tench."


def test_without_meta_bin_labels_count_all_thousand_classes(tmp_path: Path) -> None:
    task = load(write_prepared(tmp_path / "imagenet1k", meta=False).parent, "imagenet1k", split="val")
    assert len(task.classnames) == 1000
    assert [label for _, label in task.samples] == [0, 1, 999, 999]
    assert [task.classnames[i] for i in (0, 1, 999)] == ["tench", "goldfish", "toilet paper"]


def test_archives_are_unpacked_once_into_the_same_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root, said = write_archives(tmp_path / "data", monkeypatch), []
    first = list(load(root, "imagenet1k", report=lambda label, *_: said.append(label)).samples)
    prepared = list(load(write_prepared(tmp_path / "prepared"), "imagenet1k").samples)
    for (pixels, label), (other, other_label) in zip(first, prepared, strict=True):
        assert label == other_label
        assert pixels.tobytes() == other.tobytes()
    assert said == ["unpack ImageNet"]
    for archive in ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_val.tar"):
        (root / archive).unlink()
    assert len(list(load(root, "imagenet1k").samples)) == 4
    assert {p.name for p in root.iterdir()} == {"val", "meta.bin"}


def test_an_interrupted_unpacking_is_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = write_archives(tmp_path / "data", monkeypatch)
    (root / "val.unpacking").mkdir()
    (root / "val.unpacking" / "ILSVRC2012_val_00000009.JPEG").write_bytes(picture(0))  # left by a kill
    with monkeypatch.context() as patch:
        patch.setattr("shutil.move", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load(root, "imagenet1k")
    assert not (root / "val").exists()
    assert len(list(load(root, "imagenet1k").samples)) == 4


@pytest.mark.parametrize("file", ["ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_val.tar"])
def test_damaged_archives_are_the_runs_error(file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = write_archives(tmp_path / "data", monkeypatch)
    (root / file).write_bytes((root / file).read_bytes()[:-100])
    with pytest.raises(RunError, match=f"cannot be unpacked: .*{file}"):
        load(root, "imagenet1k")
    assert not (root / "val").exists()


def test_what_is_not_there_is_named_and_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = write_archives(tmp_path / "data", monkeypatch)
    (root / "ILSVRC2012_img_val.tar").unlink()
    for split, words in (("test", "val/WNID"), ("train", "train/WNID")):
        with pytest.raises(UsageError, match=f"imagenet1k: not found below .*expected {words}"):
            load(root, "imagenet1k", split=split)
    with pytest.raises(UsageError, match="no split 'dev'"):
        load(root, "imagenet1k", split="dev")
    assert [p.name for p in root.iterdir()] == ["ILSVRC2012_devkit_t12.tar.gz"]


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content", ["bomb", "plain bomb", "cut", "empty", "other"])
def test_a_meta_bin_that_is_something_else_is_refused_and_not_executed(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_prepared(tmp_path) / "meta.bin"
    if content == "bomb":
        torch.save((Bomb(), VAL), path)
    elif content == "other":
        torch.save((["n01440764"], VAL), path)
    else:
        path.write_bytes({"plain bomb": pickle.dumps(Bomb()), "cut": path.read_bytes()[:200], "empty": b""}[content])
    with pytest.raises(RunError, match=r"meta.bin: not the pair that torchvision saves"):
        load(tmp_path, "imagenet1k")
    assert not (tmp_path / "exploded").exists()


def test_folders_that_are_no_class_and_folders_without_images_are_the_runs_error(tmp_path: Path) -> None:
    root = write_prepared(tmp_path, meta=False)
    (root / "val" / "n01").mkdir()
    with pytest.raises(RunError, match="n01: not one of the 1000 classes"):
        load(root, "imagenet1k")
    (tmp_path / "bare" / "val" / "n01440764").mkdir(parents=True)
    with pytest.raises(RunError, match="no images"):
        load(tmp_path / "bare", "imagenet1k")


def test_a_broken_picture_is_the_runs_error(tmp_path: Path) -> None:
    root = write_prepared(tmp_path)
    next((root / "val" / "n01443537").iterdir()).write_bytes(picture(3)[:200])
    with pytest.raises(RunError, match="imagenet1k: an image cannot be read"):
        list(load(root, "imagenet1k").batches(64))

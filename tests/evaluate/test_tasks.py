import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d4c.errors import D4CError, RunError, UnknownNameError, UsageError
from d4c.evaluate import CaptionTask, ImageTask, classify
from d4c.evaluate.tasks import class_texts
from evaluate.painter import COLOURS, LABELS, SIZE, TEMPLATES, Painter, encoded, flat, load, silent, write_set

# webdataset leaves its shards to the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def test_a_set_is_read_with_its_names_templates_and_labels_in_order(root: Path) -> None:
    task = load(root)
    assert (task.name, task.classnames, task.templates) == ("wds/colours", tuple(COLOURS), tuple(TEMPLATES))
    pixels, labels = zip(*task.samples, strict=True)
    assert list(labels) == LABELS
    assert all(p.shape == (3, SIZE, SIZE) and p.dtype == np.float32 for p in pixels)
    assert pixels[3][:, 0, 0].tolist() == [1, 1, -1]  # yellow in normalised space


def test_every_shard_is_read(tmp_path: Path) -> None:
    samples = [(flat((255, 0, 0)), str(i % 6)) for i in range(7)]
    write_set(tmp_path / "wds_shards", samples, shards=3)
    labels = [label for _, label in load(tmp_path, "wds/shards").samples]
    assert sorted(labels) == [0, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_pictures_of_any_kind_become_rgb(suffix: str, mode: str, tmp_path: Path) -> None:
    if mode == "P" and suffix != "png":
        pytest.skip("has no palettes")
    picture = Image.new("RGB", (20, 10), (200, 200, 200))
    picture = picture.quantize(2) if mode == "P" else picture.convert(mode)
    write_set(tmp_path / "wds_kinds", [(encoded(picture, suffix), "0")], suffix=suffix)
    ((pixels, _),) = load(tmp_path, "wds/kinds").samples
    np.testing.assert_allclose(pixels, np.full((3, SIZE, SIZE), 200 / 127.5 - 1), atol=0.02)


@pytest.mark.parametrize(("place", "name"), [
    ("wds_colours", "wds/colours"), ("colours", "wds/colours"), (".", "wds/colours"), ("wds_a-b", "wds/a/b"),
])  # fmt: skip
def test_a_set_is_found_below_the_root_and_at_it(place: str, name: str, tmp_path: Path) -> None:
    write_set(tmp_path / "data" / place, [(flat((0, 0, 255)), "2")])
    assert [label for _, label in load(tmp_path / "data", name).samples] == [2]


def test_missing_roots_and_sets_are_the_users_errors(root: Path) -> None:
    with pytest.raises(UsageError, match=r"wds/colour: not found below .*wds_colour"):
        load(root, "wds/colour")
    for name in ("wds/colours", "cifar10"):
        with pytest.raises(UsageError, match="nowhere"):
            load(root / "nowhere", name)


def test_a_set_that_clip_benchmark_does_not_know_gets_the_nearest(root: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        load(root, "cifar1")


@pytest.mark.parametrize("without", ["names", "templates"])
def test_sets_without_names_or_templates_are_refused(without: str, tmp_path: Path) -> None:
    write_set(tmp_path / "wds_bare", [(flat((0, 0, 0)), "0")], **{without: None})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is it a classification set"):
        load(tmp_path, "wds/bare")


def test_a_set_of_captions_is_another_task(tmp_path: Path) -> None:
    samples = [(flat((0, 0, 0)), "a night\na cellar"), (flat((255, 255, 255)), "snow")]
    write_set(tmp_path / "wds_said", samples, label="txt", names=None, templates=None, kind="retrieval")
    task = load(tmp_path, "wds/said")
    assert isinstance(task, CaptionTask)
    ((pixels, captions),) = task.batches(64)
    assert captions == [["a night", "a cellar"], ["snow"]]
    assert pixels[:, 0, 0, 0].tolist() == [-1, 1]


def test_names_and_templates_of_ones_own_replace_the_sets(root: Path) -> None:
    names, templates = [c.upper() for c in COLOURS], ["{c}!"]
    for given in (names, {"colours": names, "x": []}, {"wds/colours": names}):
        assert load(root, classnames=given).classnames == tuple(names)
    for given in (templates, {"colours": templates, "imagenet1k": []}, {"imagenet1k": templates}):  # as a last resort
        task = load(root, templates=given)
        assert class_texts(task) == [[f"{name}!"] for name in COLOURS]
        assert task.classnames == tuple(COLOURS)
    with pytest.raises(UsageError, match="the class names given are for 'x'"):
        load(root, classnames={"x": names})


def test_whole_texts_by_class_take_the_place_of_templates(root: Path) -> None:
    texts = {name: [f"{name} {{paint}}", f"some {name}"] for name in COLOURS}
    for given in (texts, {"colours": texts}):
        assert class_texts(load(root, templates=given)) == list(texts.values())
    with pytest.raises(UsageError, match="none for 'red'"):
        load(root, templates={name: text for name, text in texts.items() if name != "red"})


def test_lists_of_ones_own_serve_a_set_without_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "wds_bare", [(flat((0, 255, 0)), "1")], names=None, templates=None)
    task = load(tmp_path, "wds/bare", classnames=["red", "green"], templates=["{c}"])
    assert classify({"m": Painter()}, task, silent)["m"].metrics["acc1"] == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("split", ["val", "", "../test"])
def test_a_split_that_is_not_there_is_the_users_error(split: str, root: Path) -> None:
    with pytest.raises(UsageError, match="wds/colours"):
        load(root, split=split)


def test_another_split_is_read_where_it_is_asked_for(root: Path) -> None:
    write_set(root / "other", [(flat((0, 0, 255)), "2")])
    (root / "other" / "test").rename(root / "wds_colours" / "train")
    assert [label for _, label in load(root, split="train").samples] == [2]


def test_sets_of_several_labels_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([1, 0, 1, 0, 0, 0]))
    samples = [(flat((255, 0, 255)), file.getvalue().decode("latin-1"))]
    write_set(tmp_path / "wds_many", samples, label="npy", kind="multilabel")
    with pytest.raises(D4CError):
        classify({"m": Painter()}, load(tmp_path, "wds/many"), silent)


def break_picture(folder: Path) -> None:
    write_set(folder, [(flat((255, 0, 0)), "0"), (b"\x89PNG not a picture", "1")])


def cut_picture(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    write_set(folder, [(encoded(Image.fromarray(noise))[:2000], "0")])


def word_as_label(folder: Path) -> None:
    write_set(folder, [(flat((255, 0, 0)), "red")])


def no_label(folder: Path) -> None:
    write_set(folder, [(flat((255, 0, 0)), "0")], label="txt")


def no_picture(folder: Path) -> None:
    write_set(folder, [(b"GIF89a", "0")], suffix="gif")


def cut_shard(folder: Path) -> None:
    write_set(folder, [(flat((255, 0, 0)), "0")] * 20)
    shard = folder / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:5000])


def no_shard(folder: Path) -> None:
    write_set(folder, [(flat((255, 0, 0)), "0")])
    (folder / "test" / "0.tar").unlink()


def empty_shard(folder: Path) -> None:
    write_set(folder, [])


def no_count(folder: Path) -> None:
    write_set(folder, [(flat((255, 0, 0)), "0")])
    (folder / "test" / "nshards.txt").unlink()


def word_as_count(folder: Path) -> None:
    write_set(folder, [(flat((255, 0, 0)), "0")])
    (folder / "test" / "nshards.txt").write_text("one")


BREAKS = [break_picture, cut_picture, word_as_label, no_label, no_picture, cut_shard, no_shard, empty_shard, no_count,
          word_as_count]  # fmt: skip


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_broken_contents_are_the_runs_error_and_name_the_set(damage: Any, tmp_path: Path) -> None:
    damage(tmp_path / "wds_broken")
    with pytest.raises(RunError, match="wds/broken"):
        classify({"m": Painter()}, load(tmp_path, "wds/broken"), silent)


@pytest.mark.parametrize("template", ["a {} thing", "a {name} thing", "a {c thing"])
def test_templates_that_cannot_be_filled_are_an_error_of_ours(template: str, tmp_path: Path) -> None:
    write_set(tmp_path / "wds_odd", [(flat((255, 0, 0)), "0")], templates=[template])
    with pytest.raises(D4CError, match="wds/odd"):
        classify({"m": Painter()}, load(tmp_path, "wds/odd"), silent)


def test_a_label_that_no_class_has_is_the_runs_error(tmp_path: Path) -> None:
    write_set(tmp_path / "wds_high", [(flat((255, 0, 0)), "6")])
    with pytest.raises(RunError, match="wds/high"):
        classify({"m": Painter()}, load(tmp_path, "wds/high"), silent)


@dataclass(frozen=True)
class ByNumber:
    """Sixty images, ten of each class, class by class; which were looked at."""

    seen: list[int] = field(default_factory=list)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        self.seen.append(number)
        return np.full((3, 2, 2), number, np.float32), number // 10

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(60))


def test_images_are_drawn_from_all_of_a_set_that_is_asked_by_number() -> None:
    samples = ByNumber()
    task = ImageTask("ordered", samples, 60, tuple(COLOURS), TEMPLATES)
    pixels, labels = task.draw(12, seed=1)
    assert len(samples.seen) == 12  # no others are read
    assert pixels[:, 0, 0, 0].tolist() == sorted(set(samples.seen))
    assert labels == [number // 10 for number in samples.seen]
    assert len(set(labels)) > 3
    assert not np.array_equal(pixels, task.draw(12, seed=2)[0])
    assert len(task.draw(100, seed=1)[1]) == 60


def test_of_a_stream_images_are_drawn_from_its_beginning() -> None:
    samples = ByNumber()
    task = ImageTask("stream", iter(samples), 0, tuple(COLOURS), TEMPLATES)
    pixels, _ = task.draw(5, seed=1, look_around=4)
    assert samples.seen == list(range(20))
    assert set(pixels[:, 0, 0, 0]) - set(range(5))  # not only the first
    first = ImageTask("stream", iter(ByNumber()), 0, tuple(COLOURS), TEMPLATES).draw(5, seed=1)[0]
    assert first[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(RunError, match="empty"):
        ImageTask("none", iter(()), 0, tuple(COLOURS), TEMPLATES).draw(5, seed=1)

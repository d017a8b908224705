"""Small sets in CLIP_benchmark's layout, and an encoder that knows nothing but colours."""

import contextlib
import gc
import io
import json
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification as clip_benchmark
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from d4c.errors import D4CError, RunError, UnknownNameError, UsageError
from d4c.evaluate import ImageTask, Prediction, classify, load_task, paired, result_json
from d4c.inputs import Preprocess

# webdataset leaves its shards to the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

COLOURS = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255),
    "pink": (255, 0, 255),
}  # fmt: skip
TEMPLATES = ["a {c} thing", "the {c} thing", "{c}"]
SIZE = 8


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What webdataset left open is closed while its warnings are ignored."""
    yield
    gc.collect()


def silent(_: str, __: int, ___: int) -> None:
    pass


class Names:
    """A tokenizer: the index of the colour in a text, and which template it is in."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        ids = []
        for text in texts:
            name = next(c for c in COLOURS if c in text)
            ids.append([list(COLOURS).index(name), TEMPLATES.index(text.replace(name, "{c}"))])
        return np.array(ids)


@dataclass(frozen=True)
class Painter:
    """Pictures to their mean colour, texts to the colour they name, both around grey; templates differ in length.

    Args:
        blind: channels that are not seen.
    """

    blind: tuple[int, ...] = ()

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    @property
    def tokenizer(self) -> Any:
        return Names()

    def encode_image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        z = 3 * pixels.mean(axis=(2, 3))  # [image, channel] from -3 to 3
        z[:, list(self.blind)] = 0
        return z

    def encode_text(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        z = np.array(list(COLOURS.values()), np.float32)[ids[:, 0]] / 127.5 - 1  # [text, channel] of -1 and 1
        turned = z + np.eye(3, dtype=np.float32)[ids[:, 1]] / 2  # each template leans another way
        return turned * (1 + 5 * ids[:, 1:]).astype(np.float32)


def encoded(picture: Image.Image, suffix: str = "png") -> bytes:
    file = io.BytesIO()
    picture.save(file, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[suffix])
    return file.getvalue()


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (12, 9)) -> bytes:
    return encoded(Image.new("RGB", size, colour))


def write_set(
    folder: Path, samples: Sequence[tuple[bytes, str]], *, shards: int = 1, suffix: str = "png", label: str = "cls",
    names: Sequence[str] | None = tuple(COLOURS), templates: Sequence[str] | None = TEMPLATES, kind: str | None = None,
) -> Path:  # fmt: skip
    """Pairs of image bytes and labels as CLIP_benchmark's exporter lays them out."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(str(shards))
    for file, lines in (("classnames", names), ("zeroshot_classification_templates", templates)):
        if lines is not None:
            (folder / f"{file}.txt").write_text("\n".join(lines))
    if kind is not None:
        (folder / "dataset_type.txt").write_text(kind)
    for shard in range(shards):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for i in range(shard, len(samples), shards):
                for name, data in (
                    (f"s{i:07}.{suffix}", samples[i][0]),
                    (f"s{i:07}.{label}", samples[i][1].encode("latin-1")),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


# Ten pictures; 3 and 7 carry a wrong label, so a seeing encoder has 8 of 10 right.
SHOWN = [0, 1, 2, 3, 4, 5, 0, 1, 2, 0]
LABELS = [0, 1, 2, 4, 4, 5, 0, 5, 2, 0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the set `wds_colours` in it."""
    colours = list(COLOURS.values())
    samples = [(flat(colours[c]), str(label)) for c, label in zip(SHOWN, LABELS, strict=True)]
    write_set(tmp_path / "data" / "wds_colours", samples)
    return tmp_path / "data"


def load(root: Path, name: str = "wds/colours") -> ImageTask:
    return load_task(name, root, Painter().preprocess)


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


def test_the_right_answers_are_found_in_batches_that_do_not_divide_the_set(root: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found = classify({"m": Painter()}, load(root), lambda *step: seen.append(step), batch=4)["m"]
    assert found.labels.tolist() == LABELS
    assert found.logits.shape == (10, 6)
    assert found.logits.argmax(axis=1).tolist() == SHOWN
    assert found.metrics["acc1"] == pytest.approx(0.8)
    # By class: 3 of 3 red, 1 of 1 green, 2 of 2 blue, none yellow, 1 of 2 cyan, 1 of 2 pink.
    assert found.metrics["mean_per_class_recall"] == pytest.approx((1 + 1 + 1 + 0.5 + 0.5) / 5)
    assert [done for label, done, _ in seen if label == "encode images"] == [4, 8, 10]
    assert [done for label, done, _ in seen if label == "encode classes"] == [1, 2, 3, 4, 5, 6]


def test_logits_are_a_hundred_times_the_cosine_with_the_mean_of_unit_prompts() -> None:
    # Red leans by 1/2 along each axis in turn: (1.5, -1, -1), (1, -0.5, -1), (1, -1, -0.5), lengths put aside.
    prompts = np.array([[1.5, -1, -1], [1, -0.5, -1], [1, -1, -0.5]])
    red = (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).mean(axis=0)
    pixels = np.tile(np.array([1, -1, -1], np.float32)[:, None, None], (1, SIZE, SIZE))
    task = ImageTask("t", [(pixels, 0)], 1, ("red", "green"), tuple(TEMPLATES))
    expected = 100 * red @ np.array([1, -1, -1]) / (np.linalg.norm(red) * np.sqrt(3))
    assert classify({"m": Painter()}, task, silent)["m"].logits[0, 0] == pytest.approx(expected, rel=1e-5)


class Oracle(torch.nn.Module):
    """The same encoder as CLIP_benchmark wants it."""

    def __init__(self, painter: Painter) -> None:
        super().__init__()
        self.painter = painter

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.painter.encode_image(pixels.numpy()))

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.painter.encode_text(ids.numpy()))


class Loader:
    """All of a task in batches of three, as CLIP_benchmark wants it."""

    def __init__(self, task: ImageTask) -> None:
        self.dataset = self
        self.classes = task.classnames
        self.samples = list(task.samples)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i in range(0, len(self.samples), 3):
            pixels, labels = zip(*self.samples[i : i + 3], strict=True)
            yield torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


@pytest.fixture
def _one_element_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """clip-benchmark 1.6.2 takes float() of arrays with one element, which numpy 2.4 does no longer."""
    numpy = torch.Tensor.numpy
    monkeypatch.setattr(torch.Tensor, "numpy", lambda x: numpy(x).reshape(()) if x.shape == (1,) else numpy(x))


@contextlib.contextmanager
def quiet_sklearn() -> Iterator[None]:
    """It warns of predicted classes that no label has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        yield


@pytest.mark.usefixtures("_one_element_arrays")
@pytest.mark.parametrize("blind", [(), (0,), (2,)])
def test_the_whole_evaluation_equals_clip_benchmarks(blind: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [
        (encoded(Image.fromarray(rng.integers(0, 256, (10, 14, 3), np.uint8))), str(rng.integers(5))) for _ in range(40)
    ]  # no picture is pink
    write_set(tmp_path / "wds_noise", samples)
    painter, task = Painter(blind), load(tmp_path, "wds/noise")
    found = classify({"m": painter}, task, silent, batch=16)["m"]

    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(Names()(texts))

    arguments = (Oracle(painter), Loader(task), tokenize, list(task.classnames), list(task.templates), "cpu")
    with quiet_sklearn():
        expected = clip_benchmark.evaluate(*arguments, amp=False)
    assert found.metrics == pytest.approx(expected)
    assert 0 < expected["acc1"] < 1
    classifier = clip_benchmark.zero_shot_classifier(*(arguments[i] for i in (0, 2, 3, 4, 5)), amp=False)
    logits, labels = clip_benchmark.run_classification(arguments[0], classifier, arguments[1], "cpu", amp=False)
    np.testing.assert_allclose(found.logits, logits.numpy(), atol=1e-3)
    assert found.labels.tolist() == labels.tolist()


@pytest.mark.usefixtures("_one_element_arrays")
@pytest.mark.parametrize(("num", "classes"), [(1, 5), (50, 5), (200, 7), (40, 30)])
def test_metrics_equal_clip_benchmarks(num: int, classes: int) -> None:
    rng = np.random.default_rng(num)
    labels = rng.integers(classes, size=num)
    logits = rng.standard_normal((num, classes)).astype(np.float32)
    logits[np.arange(num), labels] += 1
    acc1, acc5 = clip_benchmark.accuracy(torch.from_numpy(logits), torch.from_numpy(labels), topk=(1, 5))
    with quiet_sklearn():
        recall = balanced_accuracy_score(labels, logits.argmax(axis=1))
    assert Prediction(logits, labels).metrics == pytest.approx(
        {"acc1": acc1, "acc5": acc5, "mean_per_class_recall": recall}
    )


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_top_five_of_fewer_classes_is_nan(classes: int) -> None:
    metrics = Prediction(np.eye(classes, dtype=np.float32), np.arange(classes)).metrics
    assert np.isnan(metrics["acc5"])
    assert (metrics["acc1"], metrics["mean_per_class_recall"]) == (1, 1)


def test_several_encoders_see_a_set_that_can_be_read_once() -> None:
    pixels = [np.tile(np.array(c, np.float32)[:, None, None] / 127.5 - 1, (1, SIZE, SIZE)) for c in COLOURS.values()]
    once = iter([(p, i) for i, p in enumerate(pixels)])
    task = ImageTask("t", once, 0, tuple(COLOURS), tuple(TEMPLATES))
    found = classify({"float": Painter(), "blind": Painter(blind=(0, 1, 2))}, task, silent, batch=2)
    assert found["float"].metrics["acc1"] == 1
    assert not found["blind"].logits.any()  # an embedding of length zero is like nothing
    assert found["blind"].labels.tolist() == found["float"].labels.tolist() == list(range(6))


def test_records_have_clip_benchmarks_keys(root: Path) -> None:
    task = load(root)
    record = result_json(task, "tiny", classify({"m": Painter()}, task, silent)["m"].metrics)
    assert record == {
        "dataset": "wds/colours", "model": "tiny", "task": "zeroshot_classification", "metrics": record["metrics"],
    }  # fmt: skip
    assert set(record["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
    assert json.loads(json.dumps(record)) == record


# Against float.


def prediction(chosen: list[int], labels: list[int]) -> Prediction:
    return Prediction(np.eye(3, dtype=np.float32)[chosen], np.array(labels))


def test_paired_differences_by_hand() -> None:
    # Right before: 1 1 1 0 0, after: 1 0 0 1 0; differences 0 -1 -1 1 0, mean -1/5.
    # Squared deviations: (1 + 16 + 16 + 36 + 1) / 25 = 14/5; / 4 = 0.7; a mean of 5 has the error sqrt(0.7 / 5).
    labels = [0, 0, 0, 1, 1]
    found = paired(prediction([0, 0, 0, 2, 2], labels), prediction([0, 1, 2, 1, 0], labels))
    assert found["acc1_difference"] == pytest.approx(-0.2)
    assert found["acc1_standard_error"] == pytest.approx(np.sqrt(0.7 / 5))
    assert found["changed_predictions"] == pytest.approx(4 / 5)  # from wrong to wrong is a change too


def test_nothing_changed_means_no_error_and_one_image_has_none() -> None:
    same = prediction([0, 1, 2], [0, 0, 2])
    zero = {"acc1_difference": 0, "acc1_standard_error": 0, "changed_predictions": 0}
    assert paired(same, same) == zero
    assert np.isnan(paired(prediction([0], [0]), prediction([1], [0]))["acc1_standard_error"])


# Where sets lie, and what is wrong with them.


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


def test_sets_of_captions_are_refused(tmp_path: Path) -> None:
    write_set(
        tmp_path / "wds_said", [(flat((0, 0, 0)), "a night\na cellar")], label="txt", names=None, templates=None,
        kind="retrieval",
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"wds/said: .*is it a classification set"):
        load(tmp_path, "wds/said")


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

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification as clip_benchmark
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from d4c.errors import UsageError
from d4c.evaluate import ImageTask, Prediction, classify, paired, predict, result_json, zero_shot_classifier
from evaluate.painter import (
    COLOURS,
    LABELS,
    SHOWN,
    SIZE,
    TEMPLATES,
    Loader,
    Names,
    Oracle,
    Painter,
    encoded,
    load,
    silent,
    write_set,
)

# webdataset leaves its shards to the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


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


def test_a_classifier_can_be_made_first_and_given_back(root: Path) -> None:
    task, encoder = load(root), Painter()
    classifier = zero_shot_classifier(encoder, task, silent)
    assert classifier.shape == (3, len(COLOURS))  # [embedding, class]
    np.testing.assert_allclose(np.linalg.norm(classifier, axis=0), 1, rtol=1e-6)
    again = predict({"m": encoder}, {"m": classifier}, task, silent)["m"]
    assert again.logits.tobytes() == classify({"m": encoder}, task, silent)["m"].logits.tobytes()
    # Turned by one class, every picture is taken for the colour before its own.
    turned = predict({"m": encoder}, {"m": np.roll(classifier, -1, axis=1)}, task, silent)["m"]
    assert turned.logits.argmax(axis=1).tolist() == [(c - 1) % 6 for c in SHOWN]


@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
def test_a_classifier_that_does_not_fit_is_refused(shape: tuple[int, int], root: Path) -> None:
    with pytest.raises(UsageError, match=rf"the classifier is \[{shape[0]}, {shape[1]}\]"):
        predict({"m": Painter()}, {"m": np.zeros(shape, np.float32)}, load(root), silent)


def test_records_carry_what_clip_benchmark_can_be_asked_to_add(root: Path) -> None:
    record = result_json(
        load(root), "ViT-B/32", {"acc1": 1.0}, pretrained="openai", language="en", dump_classnames=True,
        dump_templates=True,
    )  # fmt: skip
    assert set(record) == {
        "dataset", "model", "pretrained", "task", "metrics", "language", "classnames", "templates",
    }  # fmt: skip
    assert (record["classnames"], record["templates"]) == (list(COLOURS), TEMPLATES)
    assert json.loads(json.dumps(record)) == record


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

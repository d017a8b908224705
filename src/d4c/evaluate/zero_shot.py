"""Zero-shot classification on CLIP_benchmark's data sets, with its templates, metrics and JSON keys."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.errors import MissingExtraError, RunError, UnknownNameError, UsageError
from d4c.evaluate.agreement import unit
from d4c.inputs import Encoder, Preprocess

LOGIT_FACTOR = 100.0  # the evaluation's constant, not the model's own temperature


@dataclass(frozen=True)
class ImageTask:
    """A labelled set, read as it is walked through.

    Args:
        samples: pairs of pixels [3, size, size] in normalised space and the label, an index into the class names.
        size: how many, 0 where the set does not say.
        classnames: in label order; templates: with `{c}`.
    """

    name: str
    samples: Iterable[tuple[NDArray[np.float32], int]]
    size: int
    classnames: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """Logits [image, class], labels [image], and CLIP_benchmark's metrics as fractions."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def metrics(self) -> dict[str, float]:
        """`acc1`, `acc5` (NaN below five classes) and `mean_per_class_recall`."""
        order = np.argsort(-self.logits, axis=1, kind="stable")  # [image, class]
        right = order == self.labels[:, None]
        recalls = [right[self.labels == c, 0].mean() for c in np.unique(self.labels)]
        return {
            "acc1": float(right[:, 0].mean()),
            "acc5": float(right[:, :5].any(axis=1).mean()) if self.logits.shape[1] >= 5 else float("nan"),
            "mean_per_class_recall": float(np.mean(recalls)),
        }


def load_task(name: str, root: Path, preprocess: Preprocess, split: str = "test") -> ImageTask:
    """Read a classification set through CLIP_benchmark.

    Args:
        name: as CLIP_benchmark spells it; `wds/NAME` is looked for at `root`, `root/NAME` and `root/wds_NAME`.

    Raises:
        MissingExtraError: the `eval` extra is not installed.
        UsageError: the set is not below `root`, or is not a classification set.
        UnknownNameError: CLIP_benchmark knows no such set.
        RunError: its files cannot be read.
    """
    build_dataset = _clip_benchmark()
    folder = _find(name, root)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*shardshuffle", category=UserWarning)
            dataset = build_dataset(
                dataset_name=name, root=str(folder), transform=preprocess, split=split, download=False,
                task="zeroshot_classification",
            )  # fmt: skip
        classnames, templates = dataset.classes, dataset.templates
        if not classnames or not templates:
            raise UsageError(f"{name}: no class names and templates; is it a classification set?")
    except AssertionError as error:  # how CLIP_benchmark says it
        raise UsageError(f"{name}: no class names and templates; is it a classification set?") from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise RunError(f"{name}: cannot be read from {folder}: {error}") from error
    for template in templates:
        try:
            template.format(c="")
        except (IndexError, KeyError, ValueError) as error:
            raise UsageError(f"{name}: a template needs {{c}} and no other braces: '{template}'") from error
    size = len(dataset) if hasattr(dataset, "__len__") else 0
    return ImageTask(name, dataset, size, tuple(classnames), tuple(templates))


def classify(
    encoders: Mapping[str, Encoder], task: ImageTask, report: Callable[[str, int, int], None], batch: int = 64
) -> dict[str, Prediction]:
    """Predict every image with every encoder in one pass over the set.

    A class is the normalised mean of its normalised prompts; a logit is 100 times the cosine.

    Args:
        encoders: by name; they share one preprocessing.

    Returns:
        predictions by the same names.

    Raises:
        RunError: an image cannot be read, or the set is empty.
    """
    weights = {name: _classifier(encoder, task, report) for name, encoder in encoders.items()}  # [class, embedding]
    logits: dict[str, list[NDArray[np.float32]]] = {name: [] for name in encoders}
    labels: list[int] = []
    for pixels, targets in _batches(task, batch):
        for name, encoder in encoders.items():
            features = unit(encoder.encode_image(pixels))
            logits[name].append((LOGIT_FACTOR * features @ weights[name].T).astype(np.float32))
        labels += targets
        report("encode images", len(labels), task.size)
    if not labels:
        raise RunError(f"{task.name}: the set is empty")
    return {name: Prediction(np.concatenate(parts), np.asarray(labels, np.int64)) for name, parts in logits.items()}


def _classifier(
    encoder: Encoder, task: ImageTask, report: Callable[[str, int, int], None]
) -> NDArray[np.floating[Any]]:
    rows = []
    for i, name in enumerate(task.classnames):
        texts = encoder.encode_text(encoder.tokenizer([template.format(c=name) for template in task.templates]))
        rows.append(unit(unit(texts).mean(axis=0, keepdims=True)))
        report("encode classes", i + 1, len(task.classnames))
    return np.concatenate(rows)


def _batches(task: ImageTask, size: int) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
    pixels: list[NDArray[np.float32]] = []
    labels: list[int] = []
    for image, label in labelled(task):
        pixels.append(image)
        labels.append(label)
        if len(labels) == size:
            yield np.stack(pixels), labels
            pixels, labels = [], []
    if labels:
        yield np.stack(pixels), labels


def labelled(task: ImageTask) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Walk through a set, pixels and label of each image.

    Raises:
        RunError: an image cannot be read, or its label is none of the classes.
    """
    samples = iter(task.samples)
    while True:
        try:
            image, label = next(samples)
            index = int(label)
        except StopIteration:
            return
        except Exception as error:  # archives, decoders and pictures each have errors of their own
            raise RunError(f"{task.name}: an image cannot be read: {error}") from error
        if not 0 <= index < len(task.classnames):
            raise RunError(f"{task.name}: label {index} is none of the {len(task.classnames)} classes")
        yield image, index


def paired(reference: Prediction, changed: Prediction) -> dict[str, float]:
    """What changed against a reference on the same images.

    Returns:
        `acc1_difference` and its paired standard error, and `changed_predictions`, all as fractions.
    """
    labels = reference.labels
    before, after = reference.logits.argmax(axis=1), changed.logits.argmax(axis=1)
    difference = (after == labels).astype(np.float64) - (before == labels)
    return {
        "acc1_difference": float(difference.mean()),
        "acc1_standard_error": float(difference.std(ddof=1) / np.sqrt(len(labels)))
        if len(labels) > 1
        else float("nan"),
        "changed_predictions": float((before != after).mean()),
    }


def result_json(task: ImageTask, model: str, values: dict[str, float]) -> dict[str, Any]:
    """CLIP_benchmark's result record."""
    return {"dataset": task.name, "model": model, "task": "zeroshot_classification", "metrics": values}


def _find(name: str, root: Path) -> Path:
    if not name.startswith("wds/"):
        if not root.is_dir():
            raise UsageError(f"no such folder: {root}")
        return root
    cleaned = name.removeprefix("wds/").replace("/", "-")
    for folder in (root / f"wds_{cleaned}", root / cleaned, root):
        if (folder / "test").is_dir() or (folder / "train").is_dir():
            return folder
    raise UsageError(f"{name}: not found below {root}; looked for {cleaned} and wds_{cleaned}")


def _clip_benchmark() -> Callable[..., Any]:
    from d4c.models.torchvision_schemas import declare_torchvision_schemas

    declare_torchvision_schemas()
    try:
        import webdataset  # noqa: F401
        from clip_benchmark.datasets.builder import build_dataset
    except ImportError as error:
        raise MissingExtraError("eval", "evaluation on data sets") from error

    def build(**arguments: Any) -> Any:
        name = arguments["dataset_name"]
        try:
            return build_dataset(**arguments)
        except ValueError as error:
            if "Unsupported dataset" in str(error):
                raise UnknownNameError("data set", name, KNOWN_SETS) from error
            raise

    return build


KNOWN_SETS: Sequence[str] = ("cifar10", "cifar100", "imagenet1k", "wds/NAME")

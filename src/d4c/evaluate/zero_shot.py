"""Zero-shot classification with CLIP_benchmark's classifier, metrics and JSON keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.artifact.work import Report
from d4c.errors import RunError, UsageError
from d4c.evaluate.agreement import unit
from d4c.evaluate.differences import paired_difference
from d4c.evaluate.embedding_cache import EmbeddingCache
from d4c.evaluate.tasks import ImageTask, Task, class_texts
from d4c.inputs import Encoder

LOGIT_FACTOR = 100.0  # the evaluation's constant, not the model's own temperature
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """Logits [image, class], labels [image], and CLIP_benchmark's metrics as fractions."""

    logits: Array
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


def classify(
    encoders: Mapping[str, Encoder],
    task: ImageTask,
    report: Report,
    batch: int = 64,
    *,
    caches: Mapping[str, EmbeddingCache] | None = None,
) -> dict[str, Prediction]:
    """Predict every image with every encoder in one pass over the set.

    Args:
        encoders: by name; they share one preprocessing.
        caches: by the names of encoders whose embeddings are kept between runs.

    Returns:
        predictions by the same names.

    Raises:
        RunError: an image cannot be read, or the set is empty.
    """
    classifiers = {
        name: zero_shot_classifier(encoder, task, report, cache=(caches or {}).get(name))
        for name, encoder in encoders.items()
    }
    return predict(encoders, classifiers, task, report, batch, caches=caches)


def zero_shot_classifier(
    encoder: Encoder, task: ImageTask, report: Report, *, cache: EmbeddingCache | None = None
) -> Array:
    """One direction for each class: the normalised mean of its normalised texts, encoded class by class.

    Returns:
        [embedding, class], columns of length 1: what CLIP_benchmark's `zero_shot_classifier` returns and its
        `--save_clf` saves.
    """
    ids = [encoder.tokenizer(texts) for texts in class_texts(task)]  # by class, [text, token]

    def encode() -> Array:
        columns = []
        for i, of_class in enumerate(ids):
            columns.append(unit(unit(encoder.encode_text(of_class)).mean(axis=0, keepdims=True))[0])
            report("encode classes", i + 1, len(ids))
        return np.stack(columns, axis=1).astype(np.float32)

    return (cache or EmbeddingCache()).remember("classifier", ids, encode)


def predict(
    encoders: Mapping[str, Encoder],
    classifiers: Mapping[str, Array],
    task: ImageTask,
    report: Report,
    batch: int = 64,
    *,
    caches: Mapping[str, EmbeddingCache] | None = None,
) -> dict[str, Prediction]:
    """Predict with given classifiers [embedding, class]; a logit is 100 times the cosine.

    Raises:
        RunError: an image cannot be read, or the set is empty.
        UsageError: a classifier does not fit its encoder or the set.
    """
    logits: dict[str, list[Array]] = {name: [] for name in encoders}
    labels: list[int] = []
    for pixels, targets in task.batches(batch):
        for name, encoder in encoders.items():
            cache = (caches or {}).get(name) or EmbeddingCache()
            features = unit(cache.encode_image(encoder, pixels))
            shape, fitting = classifiers[name].shape, (features.shape[1], len(task.classnames))
            if shape != fitting:
                raise UsageError(f"{task.name}: the classifier is {[*shape]}, [embedding, class] is {[*fitting]} here")
            logits[name].append((LOGIT_FACTOR * features @ classifiers[name]).astype(np.float32))
        labels += targets
        report("encode images", len(labels), task.size)
    if not labels:
        raise RunError(f"{task.name}: the set is empty")
    return {name: Prediction(np.concatenate(parts), np.asarray(labels, np.int64)) for name, parts in logits.items()}


def paired(reference: Prediction, changed: Prediction) -> dict[str, float]:
    """What changed against a reference on the same images.

    Returns:
        `acc1_difference` and its paired standard error, and `changed_predictions`, all as fractions.
    """
    before, after = reference.logits.argmax(axis=1), changed.logits.argmax(axis=1)
    difference, error = paired_difference(before == reference.labels, after == reference.labels)
    return {
        "acc1_difference": difference,
        "acc1_standard_error": error,
        "changed_predictions": float((before != after).mean()),
    }


def result_json(
    task: Task,
    model: str,
    metrics: Mapping[str, float],
    *,
    pretrained: str | None = None,
    language: str | None = None,
    dump_classnames: bool = False,
    dump_templates: bool = False,
) -> dict[str, Any]:
    """CLIP_benchmark's result record; what is not given is left out of it."""
    kind = "zeroshot_classification" if isinstance(task, ImageTask) else "zeroshot_retrieval"
    record: dict[str, Any] = {"dataset": task.name, "model": model, "task": kind, "metrics": dict(metrics)}
    if pretrained is not None:
        record["pretrained"] = pretrained
    if language is not None:
        record["language"] = language
    if dump_classnames and isinstance(task, ImageTask):
        record["classnames"] = list(task.classnames)
    if dump_templates and isinstance(task, ImageTask):
        record["templates"] = dict(task.templates) if isinstance(task.templates, Mapping) else list(task.templates)
    return record

"""A labelled set held in memory, so that many variants of one tower are measured on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c import evaluate
from d4c.errors import UsageError
from d4c.evaluate.agreement import unit
from d4c.inputs import Encoder
from d4c.models import Clip, TorchEncoder

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels, held in memory.

    Args:
        task: the set they are from, for its classes; its own images are not read again.
        pixels: float32 [image, 3, size, size] in normalised space; labels: [image].
    """

    task: evaluate.ImageTask
    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]


class ZeroShot:
    """A labelled set with what the float model makes of it, computed when it is first asked for."""

    def __init__(self, clip: Clip, labelled: LabelledImages) -> None:
        self.encoder, self.labelled = TorchEncoder(clip), labelled

    @cached_property
    def features(self) -> Array:
        """Unit float features of the images, [image, embedding]."""
        return unit(self.encoder.encode_image(self.labelled.pixels))

    @cached_property
    def classifier(self) -> Array:
        """The float text tower's classifier, [embedding, class]."""
        return self._classifier(self.encoder)

    @cached_property
    def reference(self) -> evaluate.Prediction:
        """What the float model predicts."""
        return self._predict(self.features, self.classifier)

    def of_text(self, encoder: Encoder) -> dict[str, float]:
        """Another text tower under the float image tower: top-1 beside float's, as fractions."""
        return self._against(self._predict(self.features, self._classifier(encoder)))

    def of_image(self, encoder: Encoder) -> dict[str, float]:
        """Another image tower beside the float text tower: top-1 beside float's, as fractions."""
        return self._against(self._predict(unit(encoder.encode_image(self.labelled.pixels)), self.classifier))

    def _classifier(self, encoder: Encoder) -> Array:
        return evaluate.zero_shot_classifier(encoder, self.labelled.task, _silent)

    def _predict(self, features: Array, classifier: Array) -> evaluate.Prediction:
        logits = evaluate.LOGIT_FACTOR * features @ classifier  # [image, class]
        return evaluate.Prediction(logits.astype(np.float32), self.labelled.labels)

    def _against(self, changed: evaluate.Prediction) -> dict[str, float]:
        accuracy = {"acc1_float": self.reference.metrics["acc1"], "acc1": changed.metrics["acc1"]}
        return accuracy | evaluate.paired(self.reference, changed)


def read_labelled(dataset: str, root: Path, clip: Clip, limit: int) -> LabelledImages:
    """Draw images of a data set, of a stream its first; errors as for `evaluate.load_task`.

    Raises:
        UsageError: a set of captions; RunError: it is empty.
    """
    task = evaluate.load_task(dataset, root, clip.preprocess)
    if not isinstance(task, evaluate.ImageTask):
        raise UsageError(f"{dataset}: captions without classes; zero-shot figures need a classification set")
    pixels, labels = task.draw(limit, seed=0)
    if len(labels) < 2:
        raise UsageError(f"{dataset}: one image; paired differences need two or more")
    return LabelledImages(task, pixels, np.asarray(labels, np.int64))


def _silent(label: str, done: int, total: int) -> None:
    pass

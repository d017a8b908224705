"""An exported folder in three calls: pictures, texts, and which text fits a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d4c.errors import UsageError
from d4c.inputs import read_pixels
from d4c.runtime.encoder import open_encoder

Picture = Image.Image | str | Path


class Session:
    """A CLIP that is ready to use.

    Args:
        folder: that `d4c export` made.
        storage: "int8" or "int4", where the folder holds both; threads: of the processor.

    Raises:
        D4CError: see `open_encoder`.
    """

    def __init__(self, folder: str | Path, storage: str | None = None, threads: int | None = None) -> None:
        self.encoder = open_encoder(folder, storage, threads)

    def encode_image(self, images: Picture | Sequence[Picture]) -> NDArray[np.float32]:
        """Pictures or paths -> [image, embedding], each of length 1.

        Raises:
            UsageError: no such file, or something else than pictures and paths.
            ImageFileError: a picture cannot be read.
            ExportError: the graph fails, or its output is not finite; so also below.
        """
        pictures = [images] if isinstance(images, Image.Image | str | Path) else list(images)
        for picture in pictures:
            if not isinstance(picture, Image.Image | str | Path):
                raise UsageError(f"a picture or a path to one, not {type(picture).__name__}")
            if not isinstance(picture, Image.Image) and not Path(picture).is_file():
                raise UsageError(f"no such file: {picture}")
        encoder, embeddings = self.encoder, []
        for start in range(0, len(pictures), encoder.batch):  # so that only one batch of pixels is held
            pixels = [read_pixels(picture, encoder.preprocess) for picture in pictures[start : start + encoder.batch]]
            embeddings.append(encoder.encode_image(np.stack(pixels)))
        return _unit(np.concatenate([np.empty((0, encoder.exported.embed_dim), np.float32), *embeddings]))

    def encode_text(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """Texts -> [text, embedding], each of length 1; of a text too long for the model its beginning counts.

        Raises:
            UsageError: something else than texts.
        """
        return _unit(self.encoder.encode_text(self.encoder.tokenizer(_texts(texts))))

    def classify(
        self, images: Picture | Sequence[Picture], labels: str | Sequence[str], template: str | None = None
    ) -> list[dict[str, float]]:
        """Say how well each label fits each picture.

        Args:
            labels: what may be seen, for example ["dog", "cat"].
            template: a text with {c} where the label goes; by default the exported folder's.

        Returns:
            for each picture, labels with their probabilities, the most probable first. They sum to 1, but for a
            SigLIP, which judges every label by itself.

        Raises:
            UsageError: no labels, an empty one, two that are the same to the model, or a template without {c}.
        """
        exported, labels = self.encoder.exported, _texts(labels)
        ids = self._label_ids(labels, exported.template if template is None else template)
        cosines = self.encode_image(images).astype(np.float64) @ _unit(self.encoder.encode_text(ids)).T
        logits = exported.logit_scale * cosines  # [image, label]
        if exported.logit_bias is None:
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities = odds / odds.sum(axis=1, keepdims=True)
        else:
            probabilities = np.exp(-np.logaddexp(0, -(logits + exported.logit_bias)))  # the sigmoid, without overflow
        orders = np.argsort(-logits, axis=1, kind="stable")
        return [{labels[i]: float(row[i]) for i in order} for row, order in zip(probabilities, orders, strict=True)]

    def _label_ids(self, labels: list[str], template: str) -> NDArray[np.int64]:
        """Tokens of the labels in their template, [label, token]."""
        if "{c}" not in template:
            raise UsageError(f"template without {{c}}: '{template}'")
        if not labels or not all(label.strip() for label in labels):
            raise UsageError("there are no labels" if not labels else "a label is empty")
        ids = self.encoder.tokenizer([template.replace("{c}", label) for label in labels])
        seen: dict[bytes, str] = {}
        for label, row in zip(labels, ids, strict=True):
            if row.tobytes() in seen:
                raise UsageError(f"labels '{seen[row.tobytes()]}' and '{label}' are the same to this model")
            seen[row.tobytes()] = label
        return ids


def _texts(given: str | Sequence[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"a text, not {type(text).__name__}")
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes of a command line that are no UTF-8
            raise UsageError(f"not a text in Unicode: {text!r}")
    return texts


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """[row, embedding], each row divided by its length; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)

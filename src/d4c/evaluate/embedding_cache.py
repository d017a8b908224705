"""Embeddings of a float model, kept between runs: the tenth recipe is compared with what the first one computed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from d4c.artifact import Work
from d4c.inputs import Encoder

Array = NDArray[np.float32]


class EmbeddingCache:
    """Finds embeddings again by the pixels or token ids that they are of, whatever set, split or file these came from.

    So a set that changed, other class names, templates, preprocessing or another tokenizer are a miss by themselves.
    A broken file is a miss, a folder that cannot be written is done without.

    Args:
        folder: of one encoder: its name tells apart weights, threads, device and versions. None remembers nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.work = Work(folder)

    def remember(self, kind: str, content: Sequence[NDArray[Any]], make: Callable[[], Array]) -> Array:
        """What `make` returned for this content, now or in an earlier run, bit by bit.

        Args:
            kind: what is made of the content, for example "images".
            content: all that goes into the encoder.
        """
        if self.work.folder is None:
            return make()
        piece = f"{kind}-{_digest(content).hex()}"
        found = self._recall(piece)
        if found is not None:
            return found
        made = make()
        with contextlib.suppress(OSError, SafetensorError):
            self.work.keep(piece, {"embeddings": made, "digest": np.frombuffer(_digest([made]), np.uint8)})
        return made

    def encode_image(self, encoder: Encoder, pixels: Array) -> Array:
        """The encoder's [image, embedding] of these pixels."""
        return self.remember("images", [pixels], lambda: encoder.encode_image(pixels))

    def encode_text(self, encoder: Encoder, ids: NDArray[np.int64]) -> Array:
        """The encoder's [text, embedding] of these token ids."""
        return self.remember("texts", [ids], lambda: encoder.encode_text(ids))

    def _recall(self, piece: str) -> Array | None:
        arrays = self.work.recall(piece) or {}
        if set(arrays) != {"embeddings", "digest"}:
            return None
        made = np.asarray(arrays["embeddings"], np.float32)
        return made if arrays["digest"].tobytes() == _digest([made]) else None


def _digest(arrays: Sequence[NDArray[Any]]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()

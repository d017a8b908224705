"""What evaluation eats: anything that turns pixels and token ids into embeddings."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from d4c.inputs.preprocess import Preprocess
from d4c.inputs.tokenizer import Tokenizer


class Encoder(Protocol):
    """A CLIP seen from outside, whatever runs it."""

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes pixels."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """How a text becomes ids."""
        ...

    def encode_image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """[image, 3, size, size] in normalised space -> [image, embedding], not normalised."""
        ...

    def encode_text(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[text, context_length] -> [text, embedding], not normalised."""
        ...

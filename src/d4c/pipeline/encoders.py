"""Anything that encodes, by its path or name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from d4c import evaluate, runtime
from d4c.artifact import check_files, read_exported
from d4c.artifact.exported import EXPORTED
from d4c.inputs import Encoder, Preprocess, Tokenizer
from d4c.models import TorchEncoder, load
from d4c.pipeline.places import resolve_device
from d4c.pipeline.quantization import load_quantized


def open_encoder(path: str, pretrained: str | None = None, device: str = "auto") -> Encoder:
    """Open an exported folder, an artifact folder, or a model by name.

    Args:
        device: for all but exported graphs, which run on the processor, with as many threads as torch has.

    Raises:
        D4CError: see `d4c.runtime.open_encoder`, `load_quantized` and `load`.
    """
    if (Path(path) / EXPORTED).is_file():
        return _open_exported(Path(path), device)
    if Path(path).is_dir():
        return TorchEncoder(load_quantized(path, device=device))
    return TorchEncoder(load(path, pretrained).to(resolve_device(device)))


def _open_exported(folder: Path, device: str) -> Encoder:
    """The graphs of a folder, or where it holds weights for open_clip, what open_clip makes of them."""
    exported = read_exported(folder)
    if exported.runtime != "open_clip":
        return runtime.open_encoder(folder, threads=torch.get_num_threads())
    check_files(folder, exported)
    return TorchEncoder(load(f"local-dir:{folder}").to(resolve_device(device)))


@dataclass(frozen=True)
class UnitEncoder:
    """An encoder whose embeddings are given length 1, to stand beside a graph that does so itself."""

    encoder: Encoder

    @property
    def preprocess(self) -> Preprocess:
        """The encoder's."""
        return self.encoder.preprocess

    @property
    def tokenizer(self) -> Tokenizer:
        """The encoder's."""
        return self.encoder.tokenizer

    def encode_image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """[image, 3, size, size] in normalised space -> [image, embedding]."""
        return evaluate.unit(self.encoder.encode_image(pixels)).astype(np.float32)

    def encode_text(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[text, context_length] -> [text, embedding]."""
        return evaluate.unit(self.encoder.encode_text(ids)).astype(np.float32)

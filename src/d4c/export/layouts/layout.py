"""What a layout is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from d4c.artifact.exported import ExportedTower, Storage
from d4c.errors import MissingExtraError
from d4c.export.source import Source


@dataclass(frozen=True, slots=True)
class Towers:
    """What a layout wrote.

    Args:
        fixed_length: whether texts must be padded to the context.
    """

    image: ExportedTower
    text: ExportedTower
    fixed_length: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """One consumer's names and habits.

    Args:
        name: on the command line; library: `library_name` of the model card.
        runtime, id_type, normalized: as in `Exported`.
        float_weights: whether weights are written as floats, so that every stored recipe will do.
        write: fills a folder with what the consumer reads; storages, the first is its default, are how weights may lie.
        usage: Markdown for the card: how to load it and what to know.
    """

    name: str
    library: str
    runtime: Literal["onnxruntime", "openvino", "open_clip"]
    id_type: Literal["int32", "int64"]
    normalized: bool
    write: Callable[[Source, Path, Sequence[Storage]], Towers]
    usage: Callable[[Source], str]
    float_weights: bool = False

    def check_installed(self) -> None:
        """Raise `MissingExtraError` unless what writes this layout is there."""
        needed = {"onnxruntime": ["onnx"], "openvino": ["onnx", "openvino"], "open_clip": []}[self.runtime]
        for package in needed:
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, f"exporting to {self.name}")

"""*.xml with *.bin, run by OpenVINO on the processor."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.errors import ExportError, MissingExtraError
from d4c.runtime.graph import Port

_DTYPES = {"f32": "float32", "i64": "int64", "i32": "int32"}


class OpenvinoGraph:
    """What the graph leaves in float is computed in float32, also where the processor would offer bfloat16.

    Args:
        threads: None leaves it to the library.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        ExportError: the file is no OpenVINO model.
        Exception: whatever OpenVINO raises on a file that it cannot run.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            openvino: Any = importlib.import_module("openvino")
        except ImportError as error:
            raise MissingExtraError("openvino", f"running {path.name}") from error
        with path.open("rb") as file:
            if b"<net" not in file.read(1024):  # OpenVINO would try the parsers of other formats, which talk
                raise ExportError(f"{path}: not an OpenVINO model")
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._model = openvino.Core().compile_model(path, "CPU", settings)
        self.inputs = tuple(_port(about) for about in self._model.inputs)
        self.outputs = tuple(_port(about) for about in self._model.outputs)

    def run(self, input: str, values: NDArray[Any], output: str) -> NDArray[np.float32]:
        """Give the one input, compute the output."""
        return np.array(self._model({input: values})[output])  # a copy: the next call may use the memory again


def _port(about: Any) -> Port:
    dtype, shape = about.get_element_type().to_string(), about.get_partial_shape()
    sides = None
    if shape.rank.is_static:
        sides = tuple(None if side.is_dynamic else side.get_length() for side in shape)
    return Port(frozenset(about.get_names()), _DTYPES.get(dtype, dtype), sides)

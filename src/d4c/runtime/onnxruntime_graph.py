"""*.onnx, run by onnxruntime on the processor."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.errors import MissingExtraError
from d4c.runtime.graph import Port

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}
_SILENT = 4  # errors come as exceptions


class OnnxruntimeGraph:
    """All graph optimisations are on, which is the default: without them integer graphs are slower than float ones.

    Args:
        threads: of one operation; None leaves it to the library.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        Exception: whatever onnxruntime raises on a file that it cannot run.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            onnxruntime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise MissingExtraError("onnx", f"running {path.name}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(_port(about) for about in self._session.get_inputs())
        self.outputs = tuple(_port(about) for about in self._session.get_outputs())

    def run(self, input: str, values: NDArray[Any], output: str) -> NDArray[np.float32]:
        """Give the one input, compute the output."""
        (result,) = self._session.run([output], {input: values})
        return result


def _port(about: Any) -> Port:
    sides = tuple(side if isinstance(side, int) else None for side in about.shape)
    return Port(frozenset([about.name]), _DTYPES.get(about.type, about.type), sides)

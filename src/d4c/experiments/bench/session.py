"""A graph opened by the library that runs it; loads nothing else, since its process is weighed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from d4c.errors import MissingExtraError

Runtime = Literal["onnxruntime", "openvino"]
Run = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Graph:
    """One tower's graph in one form.

    Args:
        name: of the variant; files: the first is what the runtime opens, all count as its size.
        input, output: names in the graph.
        dtype: of the input; length: what texts are padded to, or None for the longest of a batch.
    """

    name: str
    runtime: Runtime
    files: tuple[str, ...]
    input: str
    output: str
    dtype: Literal["float32", "int32", "int64"]
    length: int | None = None

    @property
    def file_bytes(self) -> int:
        """Size on disk."""
        return sum(os.path.getsize(file) for file in self.files)

    def feed(self, x: NDArray[Any]) -> NDArray[Any]:
        """Pixels, or ids [batch, token], as the graph wants them."""
        if self.length is not None:
            x = np.pad(x, ((0, 0), (0, self.length - x.shape[1])))
        return np.ascontiguousarray(x, self.dtype)


def require(runtime: Runtime) -> None:
    """Raise `MissingExtraError` unless the library is installed."""
    _library(runtime)


def open_graph(graph: Graph, threads: int) -> Run:
    """Load a graph for the processor.

    Args:
        threads: that compute; 0 takes all.

    Returns:
        a function from what `Graph.feed` gives to embeddings.
    """
    library = _library(graph.runtime)
    if graph.runtime == "onnxruntime":
        return _open_onnxruntime(library, graph, threads)
    return _open_openvino(library, graph, threads)


def _library(runtime: Runtime) -> Any:
    try:
        if runtime == "onnxruntime":
            import onnxruntime as library
        else:
            import openvino as library
    except ImportError as error:
        raise MissingExtraError("onnx" if runtime == "onnxruntime" else "openvino", f"running {runtime}") from error
    return library


def _open_onnxruntime(onnxruntime: Any, graph: Graph, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.files[0], options, providers=["CPUExecutionProvider"])
    return lambda x: session.run([graph.output], {graph.input: x})[0]


def _open_openvino(openvino: Any, graph: Graph, threads: int) -> Run:
    # Where the processor has bfloat16, OpenVINO computes all that is float in it unless told otherwise.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(graph.files[0], "CPU", settings).create_infer_request()

    def run(x: NDArray[Any]) -> NDArray[np.float32]:
        request.infer({graph.input: x}, share_inputs=True)
        return np.array(request.get_tensor(graph.output).data)

    return run

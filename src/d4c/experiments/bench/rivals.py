"""onnxruntime's own quantizers, given the float graph."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.artifact.folder import file_sha256
from d4c.artifact.work import appearing_whole
from d4c.errors import MissingExtraError

# By variant: which operations `quantize_static` takes; None means its default.
STATIC: dict[str, list[str] | None] = {"static": None, "static-linear": ["Conv", "Gemm", "MatMul"]}
RIVALS = (*STATIC, "dynamic")


def rival(
    name: str, float_graph: Path, input: str, calibration: Sequence[NDArray[Any]], digest: str, folder: Path
) -> Path:
    """Quantize a float graph, or find the graph that was made of the same one with the same calibration.

    Args:
        name: of `RIVALS`; input: the graph's; calibration: batches; digest: SHA-256 of them.

    Returns:
        where the graph lies.
    """
    version = _onnxruntime().__version__
    key = hashlib.sha256(f"{file_sha256(float_graph)} {name} {digest} {version}".encode()).hexdigest()
    path = folder.resolve() / f"{float_graph.stem.partition('.')[0]}.{name}-{key[:16]}.onnx"
    if path.exists():
        return path
    given = float_graph.resolve()
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        appearing_whole(path) as temporary,
        contextlib.chdir(scratch),  # where onnxruntime leaves files that it does not remove
        _quietly(),
    ):
        prepared = Path("prepared.onnx")
        _prepare(given, prepared)
        if name == "dynamic":
            _quantize_dynamic(prepared, temporary)
        else:
            _quantize_static(prepared, temporary, input, calibration, STATIC[name])
    return path


def _prepare(float_graph: Path, out: Path) -> None:
    """Fold and infer shapes, as onnxruntime wants it before it quantizes."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(float_graph, out)
    except Exception:  # its inference with symbols knows GatherND, by which texts are pooled, only half
        quant_pre_process(float_graph, out, skip_symbolic_shape=True)


def _quantize_dynamic(prepared: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(prepared, out, per_channel=True, weight_type=QuantType.QInt8)


def _quantize_static(
    prepared: Path, out: Path, input: str, calibration: Sequence[NDArray[Any]], operations: list[str] | None
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.generic]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {input: batch}

    quantize_static(
        prepared, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=operations,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that the quantizer writes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnx", "quantizing with onnxruntime") from error
    return onnxruntime

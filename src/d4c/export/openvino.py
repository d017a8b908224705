"""An ONNX graph to OpenVINO's own files, and what its CPU plugin makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from d4c.errors import ExportError, MissingExtraError
from d4c.export.checks.row import Row

LAYER_TYPES = ("FullyConnected", "Convolution")
INTEGER_PRECISIONS = ("u8", "i8")


def save_openvino(model: onnx.ModelProto, path: Path) -> None:
    """Write `path` (.xml) and the .bin beside it; weights keep their integers.

    Raises:
        ExportError: OpenVINO does not read the graph.
    """
    openvino = _openvino()
    try:
        converted = openvino.Core().read_model(model.SerializeToString())
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot read the graph: {' '.join(str(error).split())[:300]}") from error
    openvino.save_model(converted, str(path), compress_to_fp16=False)


def runtime_precisions(path: Path, threads: int = 1) -> list[tuple[str, str, str]]:
    """What the CPU plugin runs every layer with: (names of the original operations, layer type, precision).

    Raises:
        ExportError: OpenVINO cannot compile the file.
    """
    openvino = _openvino()
    try:
        compiled = openvino.Core().compile_model(
            str(path), "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        )
    except RuntimeError as error:
        raise ExportError(f"{path}: OpenVINO cannot load it: {' '.join(str(error).split())[:300]}") from error
    found = []
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        kind = str(_value(info, "layerType"))
        if kind in LAYER_TYPES:
            found.append((str(_value(info, "originalLayersNames")), kind, str(_value(info, "runtimePrecision"))))
    return found


def openvino_rows(tower: str, num_layers: int | None, precisions: list[tuple[str, str, str]]) -> list[Row]:
    """Whether as many layers run on 8-bit inputs as the artifact has integers for, and none beside them in float.

    OpenVINO names a layer after all that it fused into it, so they are counted.

    Args:
        num_layers: integer layers of the artifact, or None where it is not at hand.
    """
    wrong = [f"{names.split(',')[0]}: {p}" for names, _, p in precisions if p not in INTEGER_PRECISIONS]
    counts = Counter(f"{kind} {precision}" for _, kind, precision in precisions)
    said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "no layer"
    known = "" if num_layers is None else f"; {num_layers} integer layers in the artifact"
    passed = not wrong and bool(precisions) and num_layers in (None, len(precisions))
    rows = [Row(f"{tower}: OpenVINO", said + known, passed)]
    return rows + [Row(f"{tower}: left in float", line, False) for line in wrong[:8]]


def _value(info: Any, key: str) -> Any:
    value = info[key]
    return getattr(value, "value", value)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "an OpenVINO graph") from error
    return openvino

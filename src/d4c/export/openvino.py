"""An ONNX graph to OpenVINO's own files, and what its CPU plugin makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from d4c.errors import ExportError, MissingExtraError
from d4c.export.checks.row import Row

LAYER_TYPES = ("FullyConnected", "Convolution")
INTEGER_PRECISIONS = ("u8", "i8")


def save_openvino(model: onnx.ModelProto, path: Path) -> None:
    """Write `path` (.xml) and the .bin beside it; weights keep their integers, and sums add what was quantized.

    Raises:
        ExportError: OpenVINO does not read the graph.
    """
    openvino = _openvino()
    try:
        converted = openvino.Core().read_model(with_addends_apart(model).SerializeToString())
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot read the graph: {' '.join(str(error).split())[:300]}") from error
    openvino.save_model(converted, str(path), compress_to_fp16=False)


def with_addends_apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a pool of one pixel before each quantized addend that only its sum reads; a copy, if there is any.

    OpenVINO fuses a convolution into the sum that follows, and then adds its output unrounded instead of the codes. A
    pool between them keeps the codes and costs one pass over them.
    """
    kinds = {node.output[0]: node.op_type for node in model.graph.node}
    num_readers = Counter(name for node in model.graph.node for name in node.input)
    sums = [node for node in model.graph.node if node.op_type == "Add"]
    sums = [node for node in sums if all(kinds.get(name) == "DequantizeLinear" for name in node.input)]
    addends = {name for node in sums for name in node.input if num_readers[name] == 1}
    if not addends:
        return model
    apart = onnx.ModelProto.FromString(model.SerializeToString())
    nodes: list[onnx.NodeProto] = []
    for node in apart.graph.node:
        for i, name in enumerate(node.input):
            if name in addends:
                node.input[i] = f"{name}.apart"
        nodes.append(node)
        nodes += [
            helper.make_node("MaxPool", [name], [f"{name}.apart"], kernel_shape=[1, 1])
            for name in node.output
            if name in addends
        ]
    model_nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del apart.graph.node[:]
    apart.graph.node.extend(model_nodes)
    return apart


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

"""What can be said of an exported graph by reading it and running it, tower by tower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from d4c.artifact.exported import FLOAT_RECIPE, Exported, Storage
from d4c.errors import ExportError, MissingExtraError
from d4c.export.checks.combined import combined_rows
from d4c.export.checks.constants import constants_rows
from d4c.export.checks.exactness import check_layer, exactness_rows, with_inner_values
from d4c.export.checks.graph_layers import GraphReader
from d4c.export.checks.kernels import kernel_rows, kernels, optimized
from d4c.export.checks.row import Row
from d4c.export.checks.saturation import saturation_rows
from d4c.export.checks.twin import unsigned_twin
from d4c.export.layouts.to_huggingface import LAYOUT, combined_file
from d4c.export.openvino import openvino_rows, runtime_precisions
from d4c.export.source import Source
from d4c.export.towers import image_graph, text_graph


def check_tower(
    folder: Path, exported: Exported, tower: str, storage: Storage, values: NDArray[Any], source: Source | None
) -> list[Row]:
    """Look at one graph.

    Args:
        tower: "image" or "text"; storage: which of its files.
        values: a few inputs of the tower, to run it on.
        source: the artifact; without it the structure alone is looked at.

    Raises:
        ExportError: the file is not a graph, or does not run.
    """
    files = exported.image.files if tower == "image" else exported.text.files
    name = f"{tower}, {storage}" if len(files) > 1 else tower
    path = folder / files[storage]
    quantized = exported.recipe != FLOAT_RECIPE
    if exported.runtime == "openvino":
        if not quantized:
            said = Counter(f"{kind} {precision}" for _, kind, precision in runtime_precisions(path))
            return [Row(f"{name}: OpenVINO", ", ".join(f"{n} {what}" for what, n in sorted(said.items())), None)]
        if source is None:
            return openvino_rows(name, None, runtime_precisions(path))
        layers = GraphReader(_reference(exported, tower, storage, source)).layers()
        return openvino_rows(name, len(layers), runtime_precisions(path)) + saturation_rows(name, layers)
    model = _load(path)
    running, layers = optimized(path), GraphReader(model).layers()
    rows = kernel_rows(name, kernels(model, running), running, quantized=quantized) + saturation_rows(name, layers)
    if source is not None:
        rows += constants_rows(name, model, _reference(exported, tower, storage, source), source)
        inner = _run_tower(with_inner_values(model), values)
        rows += exactness_rows(name, [check_layer(layer, inner, source) for layer in layers])
    if layers:
        output = model.graph.output[0].name
        same = np.array_equal(_run_tower(model, values)[output], _run_tower(unsigned_twin(model), values)[output])
        rows.append(Row(f"{name}: as u8 weights", "the same bits" if same else "other results", same))
    return rows


def check_combined(
    folder: Path, exported: Exported, storage: Storage, pixels: NDArray[np.float32], ids: NDArray[Any]
) -> list[Row]:
    """Look at the graph of both towers and their logits, which the layout `huggingface` has; no rows without one.

    Args:
        pixels: a few images, and ids: a few texts, to run it on; errors as for `check_tower`.
    """
    if exported.layout != LAYOUT.name:
        return []
    name = "both towers" if len(exported.image.files) == 1 else f"both towers, {storage}"
    path = folder / combined_file(storage)
    model, running = _load(path), optimized(path)
    rows = kernel_rows(name, kernels(model, running), running, quantized=exported.recipe != FLOAT_RECIPE)
    found = _run(model, {"pixel_values": pixels, "input_ids": ids, "attention_mask": np.ones_like(ids)})
    image, text = (
        _run_tower(_load(folder / tower.files[storage]), values)[tower.output]
        for tower, values in ((exported.image, pixels), (exported.text, ids))
    )
    return [*rows, *combined_rows(name, found, image, text, exported.logit_scale, exported.logit_bias)]


def _reference(exported: Exported, tower: str, storage: Storage, source: Source) -> onnx.ModelProto:
    """The graph as it is translated now, under the folder's names."""
    if tower == "image":
        about = exported.image
        return image_graph(source, storage=storage, input=about.input, output=about.output,
                           normalize=exported.normalized)  # fmt: skip
    about = exported.text
    return text_graph(source, storage=storage, input=about.input, output=about.output, normalize=exported.normalized,
                      id_type=exported.id_type)  # fmt: skip


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own errors derive from Exception alone
        raise ExportError(f"{path}: not an ONNX graph: {error}") from error


def _run_tower(model: onnx.ModelProto, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Everything that a graph with one input puts out, by name."""
    return _run(model, {model.graph.input[0].name: values})


def _run(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnx", "verifying a graph") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs = session.run(None, dict(inputs))
    except Exception as error:  # onnxruntime's own errors derive from Exception alone
        raise ExportError(f"onnxruntime cannot run the graph: {' '.join(str(error).split())[:300]}") from error
    return dict(zip((output.name for output in session.get_outputs()), outputs, strict=True))

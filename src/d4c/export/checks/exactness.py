"""Every integer layer of a running graph against whole numbers.

A layer is judged on the codes that it was given in the graph, so that nothing before it counts. The reference takes
weights, scales and biases from the artifact, not from the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper

from d4c.export.checks.graph_layers import GraphLayer, GraphReader
from d4c.export.checks.row import Row
from d4c.export.source import Source

MAX_RELATIVE, MAX_CHANGED = 1e-5, 1e-4
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Exactness:
    """One layer.

    Args:
        deviation: of a Gemm, largest |y - reference| / largest |reference|; of a Conv, largest difference of codes.
        changed: of a Conv, share of codes that differ.
    """

    layer: GraphLayer
    deviation: float
    changed: float

    @property
    def is_exact(self) -> bool:
        """Within float32's rounding, and of a Conv at most one code off, seldom."""
        if self.layer.kind == "Gemm":
            return self.deviation <= MAX_RELATIVE
        return self.deviation <= 1 and self.changed <= MAX_CHANGED


def with_inner_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that also puts out what goes into every integer layer and what comes out of it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kinds = {}
    for layer in GraphReader(model).layers():
        kinds[layer.input_codes] = TensorProto.UINT8
        kinds[layer.output] = TensorProto.FLOAT if layer.kind == "Gemm" else TensorProto.UINT8
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items() if name not in present
    )
    return copy


def accumulate(codes: NDArray[np.uint8], zero: int, layer: GraphLayer, weight: NDArray[np.int8]) -> NDArray[np.float64]:
    """Sums of products of whole numbers, exact in float64: [row, out] or [batch, out, height, width]."""
    x = codes.astype(np.float64) - zero
    if layer.kind == "Gemm":
        return x @ weight.astype(np.float64).T
    pad, size, stride = layer.padding, weight.shape[-1], layer.strides[0]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    if layer.is_mean:
        return windows.sum(axis=(4, 5))
    sums = np.tensordot(windows, weight.astype(np.float64), axes=([1, 4, 5], [1, 2, 3]))  # [batch, height, width, out]
    return sums.transpose(0, 3, 1, 2)


def check_layer(layer: GraphLayer, values: Feeds, source: Source) -> Exactness:
    """Compare one layer with its reference.

    y = (Σ (a - z_a) w + b) s_a s_w; of a Conv, requantized: clamp(round(float32(..) x s_a s_w / s_y) + z_y, 0, 255).
    """
    arrays = source.arrays
    if layer.is_mean:
        weight, weight_scale = layer.codes, np.full(len(layer.codes), 1 / layer.codes[0].size, np.float32)
    else:
        weight = arrays[f"{layer.name}.weight"].astype(np.int8)
        weight_scale = arrays[f"{layer.name}.weight_scale"].astype(np.float32)
    if layer.kind == "Gemm" and weight.ndim == 4:  # a patch embedding, written as a product
        weight = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
    zero, scale = int(arrays[f"{layer.site}.zero_point"][0]), arrays[f"{layer.site}.scale"].astype(np.float32)
    total = accumulate(values[layer.input_codes], zero, layer, weight)
    shape = (-1,) if layer.kind == "Gemm" else (-1, 1, 1)
    if f"{layer.name}.bias" in arrays:
        total = total + arrays[f"{layer.name}.bias"].astype(np.float64).reshape(shape)
    unit = (scale * weight_scale).reshape(shape)
    found = values[layer.output]
    if layer.kind == "Gemm":
        reference = total * unit.astype(np.float64)
        return Exactness(layer, float(np.abs(found - reference).max() / max(np.abs(reference).max(), 1e-30)), 0.0)
    assert layer.output_site is not None
    out_scale = arrays[f"{layer.output_site}.scale"].astype(np.float32)
    out_zero = int(arrays[f"{layer.output_site}.zero_point"][0])
    codes = np.clip(np.rint(total.astype(np.float32) * (unit / out_scale)) + out_zero, 0, 255)
    difference = np.abs(found.astype(np.int32) - codes.astype(np.int32))
    return Exactness(layer, float(difference.max()), float((difference > 0).mean()))


def exactness_rows(tower: str, results: list[Exactness]) -> list[Row]:
    """The worst layer of each kind, and by name every layer that is not exact."""
    rows = []
    gemms = [r for r in results if r.layer.kind == "Gemm"]
    convolutions = [r for r in results if r.layer.kind == "Conv"]
    if gemms:
        worst = max(r.deviation for r in gemms)
        rows.append(Row(f"{tower}: products", f"{len(gemms)} against int64, largest deviation {worst:.1e}",
                        all(r.is_exact for r in gemms)))  # fmt: skip
    if convolutions:
        changed, worst = max(r.changed for r in convolutions), max(r.deviation for r in convolutions)
        found = f"{len(convolutions)} against int64, {changed:.1e} of codes differ, by {worst:.0f} at most"
        rows.append(Row(f"{tower}: convolutions", found, all(r.is_exact for r in convolutions)))
    wrong = [r for r in results if not r.is_exact]
    return rows + [Row(f"{tower}: not exact", f"{r.layer.name}: {r.deviation:.2g}", False) for r in wrong]

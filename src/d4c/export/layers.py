"""Layers and quantizers of a CLIP as ONNX nodes that runtimes fuse into integer kernels.

A quantized tensor is QuantizeLinear (u8) -> [Clip to 0..63] -> DequantizeLinear; a weight is int8 codes, or INT4 codes
cast to int8, -> DequantizeLinear with a zero point, one scale an output channel; a bias is int32 codes in units of
input scale x weight scale. The names of nodes and values are the canonical names of layers and sites.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from d4c.artifact.exported import Storage
from d4c.errors import ExportError
from d4c.export.graph import Graph
from d4c.export.source import Source


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Args:
        name: in the graph; site: the quantizer that put it out, or None where it is float.
    """

    name: str
    site: str | None = None


class Layers:
    """Writes a source's layers into a graph.

    Args:
        storage: "int4" stores weights of at most four bits two a byte.
    """

    def __init__(self, graph: Graph, source: Source, storage: Storage) -> None:
        self.graph, self.source, self.storage = graph, source, storage

    def parameter(self, name: str) -> NDArray[Any]:
        """A parameter as the source has it.

        Raises:
            ExportError: there is none.
        """
        try:
            return self.source.arrays[name]
        except KeyError as error:
            raise ExportError(f"{self.source.folder or self.source.name}: {name} is missing") from error

    def has(self, name: str) -> bool:
        """Whether the source has such a parameter."""
        return name in self.source.arrays

    def constant(self, name: str) -> str:
        """A float parameter as a constant of the graph."""
        return self.graph.constant(name, self.parameter(name).astype(np.float32))

    def quantize(self, x: str, site: str, *, after_relu: bool = False) -> Value:
        """Quantize a tensor once for all its readers; where the source leaves it in float, it stays.

        Raises:
            ExportError: a zero point that no kernel takes behind a ReLU.
        """
        bits = self.source.tensors.get(site)
        if bits is None:
            return Value(x)
        scale, zero = self.parameter(f"{site}.scale"), self.parameter(f"{site}.zero_point").astype(np.uint8)
        if after_relu and zero.any():
            raise ExportError(f"{site}: zero point {int(zero[0])} behind a ReLU; runtimes would leave it in float")
        graph = self.graph
        scale_name = graph.constant(f"{site}.scale", scale.reshape(()).astype(np.float32))
        zero_name = graph.constant(f"{site}.zero_point", zero.reshape(()))
        codes = graph.op("QuantizeLinear", [x, scale_name, zero_name], f"{site}.codes")
        if bits < 8:
            low = graph.constant("lowest_code", np.asarray(0, np.uint8))
            high = graph.constant(f"highest_code_{bits}", np.asarray(2**bits - 1, np.uint8))
            codes = graph.op("Clip", [codes, low, high], f"{site}.clipped")
        return Value(graph.op("DequantizeLinear", [codes, scale_name, zero_name], site), site)

    def linear(self, x: Value, layer: str, weight: NDArray[Any] | None = None) -> str:
        """Product with a weight, x Wᵀ + b; x: [row, in].

        Args:
            weight: [out, in] in place of the source's, where a layer is written as another kind than it is.
        """
        return self.graph.op("Gemm", self._operands(x, layer, weight), layer, transB=1)

    def convolution(self, x: Value, layer: str, *, stride: int, padding: int) -> str:
        """A square convolution; x: [batch, channel, height, width]."""
        size = self.parameter(f"{layer}.weight").shape[-1]
        return self.graph.op(
            "Conv", self._operands(x, layer), layer,
            kernel_shape=[size, size], strides=[stride, stride], pads=[padding] * 4,
        )  # fmt: skip

    def mean_convolution(self, x: Value, name: str, size: int, channels: int) -> str:
        """The mean of squares of `size` pixels of a quantized tensor: weights of code 1 whose scale is 1 / size²."""
        graph = self.graph
        inputs = [
            graph.constant(f"{name}.weight", np.ones((channels, 1, size, size), np.int8)),
            graph.constant(f"mean_of_{size**2}_{channels}", np.full(channels, 1 / size**2, np.float32)),
            graph.constant(f"zero_points_{channels}", np.zeros(channels, np.int8)),
        ]
        weight = graph.op("DequantizeLinear", inputs, f"{name}.weight_real", axis=0)
        return graph.op("Conv", [x.name, weight], name, group=channels, kernel_shape=[size, size], strides=[size, size])

    def embedding(self, ids: str, layer: str) -> str:
        """Rows of a table; ids: [batch, token] -> [batch, token, channel]. Only the rows in use become float."""
        graph = self.graph
        if layer not in self.source.weights:
            return graph.op("Gather", [self.constant(f"{layer}.weight"), ids], layer)
        scale = self.parameter(f"{layer}.weight_scale").astype(np.float32).reshape(-1, 1)
        scales = graph.op("Gather", [graph.constant(f"{layer}.weight_scale", scale), ids], f"{layer}.row_scale")
        codes = graph.op("Gather", [self._codes(layer, self.parameter(f"{layer}.weight")), ids], f"{layer}.codes")
        rows = graph.op("Cast", [codes], f"{layer}.rows", to=TensorProto.FLOAT)
        return graph.op("Mul", [rows, scales], layer)

    def norm(self, x: str, name: str, epsilon: float) -> str:
        """LayerNorm over the last axis."""
        weights = [self.constant(f"{name}.weight"), self.constant(f"{name}.bias")]
        return self.graph.op("LayerNormalization", [x, *weights], name, axis=-1, epsilon=epsilon)

    def _operands(self, x: Value, layer: str, weight: NDArray[Any] | None = None) -> list[str]:
        if weight is None:
            weight = self.parameter(f"{layer}.weight")
        if layer not in self.source.weights:
            biases = [self.constant(f"{layer}.bias")] if self.has(f"{layer}.bias") else []
            return [x.name, self.graph.constant(f"{layer}.weight", weight.astype(np.float32)), *biases]
        if x.site is None:
            raise ExportError(f"{layer}: integer weights read a float tensor")
        graph = self.graph
        scale = self.parameter(f"{layer}.weight_scale").astype(np.float32)  # [out]
        inputs = [
            self._codes(layer, weight),
            graph.constant(f"{layer}.weight_scale", scale),
            graph.constant(f"zero_points_{len(scale)}", np.zeros(len(scale), np.int8)),
        ]
        operands = [x.name, graph.op("DequantizeLinear", inputs, f"{layer}.weight_real", axis=0)]
        if self.has(f"{layer}.bias"):
            codes = graph.constant(f"{layer}.bias", self.parameter(f"{layer}.bias"))
            # computed when the graph is loaded: on disk it would be as large as the bias itself
            unit = graph.op("Mul", [inputs[1], f"{x.site}.scale"], f"{layer}.bias_unit")  # [out]
            operands.append(graph.op("DequantizeLinear", [codes, unit], f"{layer}.bias_real", axis=0))
        return operands

    def _codes(self, layer: str, codes: NDArray[np.int8]) -> str:
        if self.storage != "int4" or self.source.weights[layer] > 4:
            return self.graph.constant(f"{layer}.weight", codes)
        return self.graph.op(
            "Cast", [self.graph.int4(f"{layer}.weight", codes)], f"{layer}.weight_s8", to=TensorProto.INT8
        )

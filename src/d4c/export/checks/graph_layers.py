"""The integer layers of an exported ONNX graph, read back from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INTEGER_WEIGHTS = (TensorProto.INT8, TensorProto.INT4, TensorProto.UINT8)


@dataclass(frozen=True)
class GraphLayer:
    """A Gemm or Conv between integer tensors.

    Args:
        name: canonical; kind: "Gemm" or "Conv".
        codes: [out, in] or [out, in, height, width]; weight: name of the constant that holds them.
        site: the tensor it reads; input_codes: name of its u8 value; largest_code: 255, or 63 of six bits.
        output: name of what it gives: float, of a Gemm; codes, of a Conv, before they are clipped to six bits.
        output_site: the site that quantizes a Conv's output.
        is_mean: whether it is a convolution of each channel with ones, as average pools are written.
    """

    name: str
    kind: str
    codes: NDArray[np.int8]
    weight: str
    site: str
    input_codes: str
    largest_code: int
    output: str
    output_site: str | None
    strides: tuple[int, ...]
    padding: int
    is_mean: bool


class GraphReader:
    """Finds its way in a model: constants, and which node puts out or takes in a value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer = {value: node for node in self.nodes for value in node.output}

    def array(self, name: str) -> NDArray[Any]:
        """A constant's values; INT4 as int8."""
        array = numpy_helper.to_array(self.constants[name])
        return array.astype(np.int8) if self.constants[name].data_type == TensorProto.INT4 else array

    def consumers(self, value: str) -> list[onnx.NodeProto]:
        """Nodes that take a value in."""
        return [node for node in self.nodes if value in node.input]

    def layers(self) -> list[GraphLayer]:
        """Every Gemm and Conv with an integer weight, in the order of the graph."""
        found = []
        for node in self.nodes:
            if node.op_type in ("Gemm", "Conv"):
                weight = self.weight_of(node)
                if weight is not None:
                    found.append(self._layer(node, weight))
        return found

    def weight_of(self, node: onnx.NodeProto) -> str | None:
        """The constant of codes behind a layer's weight, or None where it is float."""
        dequantize = self.producer.get(node.input[1])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        name = dequantize.input[0]
        cast = self.producer.get(name)
        return cast.input[0] if cast is not None else name

    def _layer(self, node: onnx.NodeProto, weight: str) -> GraphLayer:
        dequantize = self.producer[node.input[0]]
        codes, largest = dequantize.input[0], 255
        clip = self.producer[codes]
        if clip.op_type == "Clip":
            largest = int(self.array(clip.input[2]))
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        output, output_site = node.output[0], None
        if node.op_type == "Conv":
            output, output_site = self._quantized_output(node)
        return GraphLayer(
            node.name,
            node.op_type,
            self.array(weight),
            weight,
            dequantize.output[0],
            codes,
            largest,
            output,
            output_site,
            tuple(attributes.get("strides", ())),
            (attributes.get("pads") or [0])[0],
            attributes.get("group", 1) > 1,
        )

    def _quantized_output(self, node: onnx.NodeProto) -> tuple[str, str]:
        """The codes behind a convolution, and the site that made them."""
        (reader,) = self.consumers(node.output[0])
        if reader.op_type == "Relu":
            (reader,) = self.consumers(reader.output[0])
        return reader.output[0], reader.output[0].removesuffix(".codes")

"""An ONNX graph in the making."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from d4c.artifact.packing import pack_nibbles

OPSET, IR_VERSION = 21, 10
Axis = str | int


class Graph:
    """Nodes, constants, inputs and outputs; every value has a name of its own."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._names: set[str] = set()

    def input(self, name: str, dtype: int, shape: Sequence[Axis]) -> str:
        """Declare what the caller gives; a text in `shape` is a dynamic axis."""
        self._inputs.append(helper.make_tensor_value_info(self._new(name), dtype, shape))
        return name

    def output(self, value: str, shape: Sequence[Axis]) -> None:
        """Declare a float32 value as a result."""
        self._outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, shape))

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output.

        Layers are called like what they put out; other nodes have no name, which over all of them takes space.

        Raises:
            ValueError: the name is taken.
        """
        called = name if kind in ("Gemm", "Conv") else ""
        self._nodes.append(helper.make_node(kind, list(inputs), [self._new(name)], name=called, **attributes))
        return name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add a constant, or find the one of that name."""
        if name not in self._constants:
            self._constants[self._new(name)] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def int4(self, name: str, codes: NDArray[np.int8]) -> str:
        """Add codes -8..7 of any shape as INT4, two a byte, low nibble first."""
        raw = pack_nibbles(codes).tobytes()
        self._constants[self._new(name)] = helper.make_tensor(name, TensorProto.INT4, codes.shape, raw, raw=True)
        return name

    def shape(self, name: str, sizes: Sequence[int]) -> str:
        """Add a constant of whole numbers, for Reshape, Slice and the like."""
        return self.constant(name, np.asarray(sizes, np.int64))

    def model(self, name: str) -> onnx.ModelProto:
        """The finished model, checked."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, [*self._constants.values()])
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="d4c"
        )
        if model.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
            onnx.checker.check_model(model)
        return model

    def _new(self, name: str) -> str:
        if name in self._names:
            raise ValueError(f"the graph has a value {name} already")
        self._names.add(name)
        return name

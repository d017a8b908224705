"""The same integers as unsigned weights: kernels that cannot saturate must give the same bits."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from d4c.export.checks.graph_layers import GraphReader

OFFSET = 128


def unsigned_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose layers' weights are u8 codes w + 128 with zero point 128; it computes the same numbers."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    reader = GraphReader(model)
    replaced = {}
    dropped = set()  # casts from INT4, whose result is now a constant
    nodes = {node.output[0]: node for node in twin.graph.node}
    for layer in reader.layers():
        node = nodes[f"{layer.name}.weight_real"]
        codes, zero = node.input[0], f"zero_points_128_{len(layer.codes)}"
        if codes in reader.producer:
            dropped.add(codes)
        unsigned = (layer.codes.astype(np.int16) + OFFSET).astype(np.uint8)
        replaced[codes] = numpy_helper.from_array(unsigned, codes)
        replaced[zero] = numpy_helper.from_array(np.full(len(unsigned), OFFSET, np.uint8), zero)
        node.input[:] = [codes, node.input[1], zero]
    kept = [t for t in twin.graph.initializer if t.name not in replaced and t.data_type != TensorProto.INT4]
    rest = [node for node in twin.graph.node if node.output[0] not in dropped]
    del twin.graph.initializer[:], twin.graph.node[:]
    twin.graph.initializer.extend([*kept, *replaced.values()])
    twin.graph.node.extend(rest)
    return twin

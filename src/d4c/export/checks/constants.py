"""Whether a graph holds the artifact's numbers, all of them and no others."""

from __future__ import annotations

import numpy as np
import onnx

from d4c.export.checks.graph_layers import GraphReader
from d4c.export.checks.row import Row
from d4c.export.source import Source


def constants_rows(tower: str, model: onnx.ModelProto, reference: onnx.ModelProto, source: Source) -> list[Row]:
    """Compare what the artifact decides with a graph written anew from it; the form of the rest may have changed since.

    Args:
        tower: "image" or "text"; reference: the tower as it is translated today, under any names of input and output.
    """
    found, expected = GraphReader(model), GraphReader(reference)
    arrays = [name for name in expected.constants if name in source.arrays]
    wrong = [
        name
        for name in arrays
        if name not in found.constants or not np.array_equal(found.array(name), expected.array(name))
    ]
    inputs = {node.output[0]: list(node.input) for node in found.nodes}
    layers = [node for node in expected.nodes if node.op_type in ("Gemm", "Conv")]
    rewired = [n.output[0] for n in layers if len(inputs.get(n.output[0], [])) != len(n.input)]
    ok = not wrong and not rewired
    rows = [Row(f"{tower}: constants", f"{len(arrays)} of the artifact's arrays", ok)]
    rows += [Row(f"{tower}: differs", name, False) for name in wrong[:8]]
    return rows + [Row(f"{tower}: inputs missing", name, False) for name in rewired[:8]]

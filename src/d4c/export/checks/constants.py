"""Whether a graph holds the artifact's numbers, all of them and no others."""

from __future__ import annotations

import numpy as np
import onnx

from d4c.export.checks.graph_layers import GraphReader
from d4c.export.checks.row import Row
from d4c.export.source import Source


def constants_rows(tower: str, model: onnx.ModelProto, reference: onnx.ModelProto, source: Source) -> list[Row]:
    """Compare constants and nodes with those of a graph written anew from the artifact.

    Args:
        tower: "image" or "text"; reference: the tower as it is translated today, under any names of input and output.
    """
    found, expected = GraphReader(model), GraphReader(reference)
    wrong = [
        name
        for name in expected.constants
        if name not in found.constants or not np.array_equal(found.array(name), expected.array(name))
    ]
    inputs = {node.output[0]: list(node.input) for node in found.nodes}
    rewired = [n.output[0] for n in expected.nodes if len(inputs.get(n.output[0], [])) != len(n.input)]
    ok = not wrong and not rewired
    count = sum(name in source.arrays for name in expected.constants)
    rows = [Row(f"{tower}: constants", f"{count} of the artifact's arrays, {len(expected.constants)} constants", ok)]
    rows += [Row(f"{tower}: differs", name, False) for name in wrong[:8]]
    return rows + [Row(f"{tower}: inputs missing", name, False) for name in rewired[:8]]

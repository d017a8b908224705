"""What d4c.json promises, held against what is there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from d4c.artifact.exported import EXPORTED, Exported, ExportedTower
from d4c.errors import ExportError
from d4c.runtime.graph import Graph, Port

Sides = tuple[int | None, ...]


def check_settings(folder: Path, exported: Exported) -> None:
    """Look at every entry of d4c.json that running relies on.

    Raises:
        ExportError: one is not what it should be.
    """
    right = {
        "runtime": exported.runtime in ("onnxruntime", "openvino"),
        "id_type": exported.id_type in ("int32", "int64"),
        "fixed_length": isinstance(exported.fixed_length, bool),
        "normalized": isinstance(exported.normalized, bool),
        "embed_dim": isinstance(exported.embed_dim, int) and exported.embed_dim > 0,
        "logit_scale": _is_number(exported.logit_scale),
        "logit_bias": exported.logit_bias is None or _is_number(exported.logit_bias),
        "template": isinstance(exported.template, str) and "{c}" in exported.template,
    }
    for name, is_right in right.items():
        if not is_right:
            raise ExportError(f"{folder}: {EXPORTED} has a wrong {name}: {getattr(exported, name)!r}")


def check_graph(path: Path, graph: Graph, tower: ExportedTower, dtype: str, given: Sides, embed_dim: int) -> None:
    """Compare a graph's input and output with what they should be.

    Args:
        dtype: of the input; given: its sides, where None must accept any length.
        embed_dim: second side of the output.

    Raises:
        ExportError: a name, type, number of axes or length differs.
    """
    if len(graph.inputs) != 1:
        raise ExportError(f"{path}: {len(graph.inputs)} inputs; {EXPORTED} says one, {tower.input}")
    _check_port(path, "input", graph.inputs, tower.input, dtype, given)
    _check_port(path, "output", graph.outputs, tower.output, "float32", (None, embed_dim))


def _check_port(path: Path, kind: str, ports: tuple[Port, ...], name: str, dtype: str, sides: Sides) -> None:
    port = next((port for port in ports if name in port.names), None)
    if port is None:
        there = ", ".join(sorted(set().union(*(port.names for port in ports))))
        raise ExportError(f"{path}: no {kind} is called {name}, as {EXPORTED} says; there is {there or 'none'}")
    if port.dtype != dtype:
        raise ExportError(f"{path}: {kind} {name} is {port.dtype}; {EXPORTED} says {dtype}")
    found = port.sides
    fits = found is None or (
        len(found) == len(sides) and all(f is None or f == s for f, s in zip(found, sides, strict=True))
    )
    if not fits:
        raise ExportError(f"{path}: {kind} {name} is {_shape(found)}; {EXPORTED} says {_shape(sides)}")


def _shape(sides: Sides | None) -> str:
    return f"[{', '.join('any' if side is None else str(side) for side in sides or ())}]"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

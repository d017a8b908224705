"""Folders as their consumers read them: a file a layout."""

from __future__ import annotations

from collections.abc import Mapping

from d4c.errors import UnknownNameError
from d4c.export.layouts import to_fastembed, to_huggingface, to_immich, to_onnx, to_open_clip, to_openvino
from d4c.export.layouts.layout import Layout, Towers

LAYOUTS: Mapping[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT
    for module in (to_onnx, to_openvino, to_huggingface, to_immich, to_fastembed, to_open_clip)
}


def find_layout(name: str) -> Layout:
    """Look a layout up.

    Raises:
        UnknownNameError: there is no such layout.
    """
    if name not in LAYOUTS:
        raise UnknownNameError("layout", name, LAYOUTS)
    return LAYOUTS[name]


__all__ = ["LAYOUTS", "Layout", "Towers", "find_layout"]

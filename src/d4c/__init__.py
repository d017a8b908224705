"""d4c: quantize CLIP models to integers without a single real image.

import d4c

quantized = d4c.quantize("tiny", recipe="w4a8", out="tiny-w4a8")
same = d4c.load_quantized("tiny-w4a8")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from d4c.errors import (
    ArtifactError,
    CalibrationError,
    D4CError,
    ExportError,
    GateError,
    ImageFileError,
    MissingExtraError,
    ModelFileError,
    PromptError,
    RecipeError,
    RunError,
    UnknownNameError,
    UnsupportedModelError,
    UsageError,
)

if TYPE_CHECKING:
    from d4c.models import Clip, QuantizedClip, load
    from d4c.pipeline import load_quantized, quantize
    from d4c.recipes import Recipe

__version__ = "0.1.0"

_HOMES = {
    "Clip": "d4c.models",
    "QuantizedClip": "d4c.models",
    "load": "d4c.models",
    "load_quantized": "d4c.pipeline",
    "quantize": "d4c.pipeline",
    "Recipe": "d4c.recipes",
}

__all__ = [
    "ArtifactError",
    "CalibrationError",
    "Clip",
    "D4CError",
    "ExportError",
    "GateError",
    "ImageFileError",
    "MissingExtraError",
    "ModelFileError",
    "PromptError",
    "QuantizedClip",
    "Recipe",
    "RecipeError",
    "RunError",
    "UnknownNameError",
    "UnsupportedModelError",
    "UsageError",
    "load",
    "load_quantized",
    "quantize",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'd4c' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)

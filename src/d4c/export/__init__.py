"""Artifacts and float models to what other runtimes read; no torch."""

from d4c.export.dequantize import dequantized
from d4c.export.layouts import LAYOUTS, find_layout
from d4c.export.source import Source, source_of
from d4c.export.write import check_place, run

__all__ = ["LAYOUTS", "Source", "check_place", "dequantized", "find_layout", "run", "source_of"]

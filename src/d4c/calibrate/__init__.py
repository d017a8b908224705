"""The stage that finds where every grid lies."""

from d4c.calibrate.layernorm import balance_layernorms
from d4c.calibrate.observe import run

__all__ = ["balance_layernorms", "run"]

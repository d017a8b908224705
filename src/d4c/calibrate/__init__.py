"""The stage that finds where every grid lies."""

from d4c.calibrate.folds import fold
from d4c.calibrate.observe import run

__all__ = ["fold", "run"]

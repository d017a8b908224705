"""The stage that finds where every grid lies."""

from d4c.calibrate.bits import CHOICES, choosable, choose_bits, sensitivities
from d4c.calibrate.folds import fold
from d4c.calibrate.observe import run
from d4c.calibrate.outliers import without_outliers

__all__ = ["CHOICES", "choosable", "choose_bits", "fold", "run", "sensitivities", "without_outliers"]

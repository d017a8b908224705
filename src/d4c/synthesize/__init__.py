"""The stage that makes images: procedures, or optimisation against the model itself."""

from d4c.synthesize.held_out import HELD_OUT_SETS, held_out_sets
from d4c.synthesize.loss import check_objectives
from d4c.synthesize.optimize import procedural, run

__all__ = ["HELD_OUT_SETS", "check_objectives", "held_out_sets", "procedural", "run"]

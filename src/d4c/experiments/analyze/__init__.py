"""`d4c analyze`: the questions of the paper's readers, measured on one model."""

from d4c.experiments.analyze.page import sentences
from d4c.experiments.analyze.request import PARTS, Request, prepare
from d4c.experiments.analyze.run import run

__all__ = ["PARTS", "Request", "prepare", "run", "sentences"]

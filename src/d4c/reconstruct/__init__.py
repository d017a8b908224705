"""The stage that learns how to round."""

from d4c.reconstruct.towers import UnitReport, run, summarize

__all__ = ["UnitReport", "run", "summarize"]

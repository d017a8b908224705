"""What a library that runs graphs must offer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph.

    Args:
        names: all that it answers to.
        dtype: as numpy calls it, or what the library says where numpy has no such type.
        sides: of its shape, None where any length will do; None as a whole where even the number of axes is open.
    """

    names: frozenset[str]
    dtype: str
    sides: tuple[int | None, ...] | None


class Graph(Protocol):
    """A graph that was read and is ready to run; its constructor takes a path and a number of threads, or None."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What must be given."""
        ...

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What can be asked for."""
        ...

    def run(self, input: str, values: NDArray[Any], output: str) -> NDArray[np.float32]:
        """Give the one input, compute the output."""
        ...

"""Errors of a tower's embeddings over several sets that were run together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from d4c.evaluate.agreement import tower_error


def errors_by_set(z: Tensor, changed: Tensor, sets: Mapping[str, slice]) -> dict[str, float]:
    """Centred error ||z' - z|| / ||z - mean z|| of each set's rows."""
    return {
        name: tower_error(z[rows].cpu().numpy(), changed[rows].cpu().numpy()).centred_error
        for name, rows in sets.items()
    }


def stacked(sets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, slice]]:
    """Several sets as one tensor, and where each lies in it."""
    places, start = {}, 0
    for name, x in sets.items():
        places[name] = slice(start, start + len(x))
        start += len(x)
    return torch.cat(list(sets.values())), places

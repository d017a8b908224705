"""What calibration finds: where the grid of each tensor lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from d4c.quantizers.grids import AffineGrid, IntegerGrid


@dataclass(frozen=True, slots=True)
class Ranges:
    """Placed grids by site.

    Args:
        weights: by layer, scale [out, 1, ..]; tensors: by tensor site; inputs: by layer, for its input alone.
    """

    weights: Mapping[str, AffineGrid]
    tensors: Mapping[str, AffineGrid]
    inputs: Mapping[str, AffineGrid]

    def merged(self, other: Ranges) -> Ranges:
        """Both together; where they name the same site, the other's grid."""
        kinds = ("weights", "tensors", "inputs")
        return Ranges(*({**getattr(self, kind), **getattr(other, kind)} for kind in kinds))

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat form for a safetensors file; `from_tensors` gives it back."""
        flat = {}
        for kind in ("weights", "tensors", "inputs"):
            for site, affine in getattr(self, kind).items():
                flat[f"{kind}/{site}/scale"] = affine.scale.cpu()
                flat[f"{kind}/{site}/zero_point"] = affine.zero_point.cpu()
                flat[f"{kind}/{site}/grid"] = torch.tensor([affine.grid.num_bits, int(affine.grid.symmetric)])
        return flat

    @classmethod
    def from_tensors(cls, flat: Mapping[str, Tensor]) -> Ranges:
        """The inverse of `to_tensors`."""
        found: dict[str, dict[str, AffineGrid]] = {"weights": {}, "tensors": {}, "inputs": {}}
        for name in flat:
            kind, site, part = name.split("/")
            if part == "grid":
                num_bits, symmetric = flat[name].tolist()
                grid = IntegerGrid(num_bits, bool(symmetric))
                key = f"{kind}/{site}/"
                found[kind][site] = AffineGrid(flat[key + "scale"], flat[key + "zero_point"], grid)
        return cls(**found)

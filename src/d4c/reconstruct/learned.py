"""What reconstruction decides about a unit, on its way into the model and into files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from d4c.artifact.work import Arrays
from d4c.quantizers.grids import AffineGrid
from d4c.reconstruct.units import Unit


@dataclass(frozen=True)
class Learned:
    """What a unit learned; what is not named stays as it is.

    Args:
        codes: by layer site; scales: of activations, by path of the quantizer in the unit.
        grids: where the codes lie, by layer site; biases: by layer site, [out].
    """

    codes: Mapping[str, Tensor]
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    grids: Mapping[str, AffineGrid] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def current(cls, unit: Unit) -> Learned:
        """The unit as it stands."""
        biases = {site: unit.bias(site) for site in unit.weights}
        return cls(
            {site: unit.grid_weight(site).codes() for site in unit.weights},
            {path: unit.quantizer(path).scale.clone() for path in unit.quantizers},
            {site: _copy(unit.grid_weight(site).affine) for site in unit.weights},
            {site: bias.clone() for site, bias in biases.items() if bias is not None},
        )

    def apply(self, unit: Unit) -> None:
        """Put it into the model; tensors are replaced, not written into, since copies may share them."""
        for site, codes in self.codes.items():
            unit.grid_weight(site).set_codes(codes, self.grids.get(site))
        for path, scale in self.scales.items():
            unit.quantizer(path).scale = scale
        for site, bias in self.biases.items():
            unit.layer(site).bias = bias

    def to_arrays(self) -> Arrays:
        """For a file; `from_arrays` gives it back."""
        arrays = {f"codes/{site}": codes.to(torch.int16).cpu().numpy() for site, codes in self.codes.items()}
        arrays |= {f"scale/{path}": np.atleast_1d(s.cpu().numpy()) for path, s in self.scales.items()}
        for site, affine in self.grids.items():
            arrays[f"grid_scale/{site}"] = affine.scale.cpu().numpy()
            arrays[f"grid_zero_point/{site}"] = affine.zero_point.cpu().numpy()
        return {**arrays, **{f"bias/{site}": bias.cpu().numpy() for site, bias in self.biases.items()}}

    @classmethod
    def from_arrays(cls, arrays: Arrays, unit: Unit) -> Learned:
        """The inverse of `to_arrays`."""

        def tensor(name: str, like: Tensor) -> Tensor:
            return torch.from_numpy(arrays[name]).to(like)

        weights = {site: unit.grid_weight(site) for site in unit.weights}
        grids = {}
        for site, weight in weights.items():
            if f"grid_scale/{site}" in arrays:
                scale, zero = (
                    tensor(f"grid_scale/{site}", weight.scale),
                    tensor(f"grid_zero_point/{site}", weight.scale),
                )
                grids[site] = AffineGrid(scale, zero, weight.grid)
        scales = {path: unit.quantizer(path).scale for path in unit.quantizers if f"scale/{path}" in arrays}
        return cls(
            {site: tensor(f"codes/{site}", weight.values) for site, weight in weights.items()},
            {path: tensor(f"scale/{path}", scale).reshape(scale.shape) for path, scale in scales.items()},
            grids,
            {site: tensor(f"bias/{site}", weights[site].scale) for site in weights if f"bias/{site}" in arrays},
        )


def _copy(affine: AffineGrid) -> AffineGrid:
    return AffineGrid(affine.scale.clone(), affine.zero_point.clone(), affine.grid)

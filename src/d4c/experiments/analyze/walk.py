"""A tower walked once, so that a change in one layer costs only what comes after it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d4c.evaluate.agreement import tower_error
from d4c.models import Clip
from d4c.models.parts import Part, TowerName, run_in_batches, tower_parts


@dataclass(frozen=True)
class Walk:
    """One tower of a model of its own, with what stands before each of its parts.

    Args:
        inputs: pixels, or trimmed ids; streams: what comes into each part, the tower's own input first.
    """

    model: Clip
    parts: tuple[Part, ...]
    inputs: Tensor
    streams: tuple[Tensor, ...]
    outputs: Tensor

    @classmethod
    def over(cls, model: Clip, tower: TowerName, inputs: Tensor) -> Walk:
        """Walk a copy of the model; `model` itself is never changed."""
        model = copy.deepcopy(model)
        inputs = inputs.to(model.logit_scale.device)
        if tower == "text":
            inputs = model.text.trim(inputs)
        streams, parts = [inputs], tower_parts(model, tower)
        for part in parts:
            streams.append(run_in_batches(part, streams[-1], inputs))
        return cls(model, tuple(parts), inputs, tuple(streams[:-1]), streams[-1])

    def outputs_with(self, replacements: Mapping[str, nn.Module]) -> Tensor:
        """The tower's embeddings with other modules in some places, [sample, embedding]."""
        first = min(i for i, part in enumerate(self.parts) if any(part.owns(layer) for layer in replacements))
        x = self.streams[first]
        with ExitStack() as stack:
            for layer, module in replacements.items():
                stack.enter_context(_replaced(self.model, layer, module))
            for part in self.parts[first:]:
                x = run_in_batches(part, x, self.inputs)
        return x


@contextmanager
def _replaced(model: nn.Module, path: str, module: nn.Module) -> Iterator[None]:
    """Put a module in another's place for the length of a `with`."""
    parent, _, leaf = path.rpartition(".")
    owner = model.get_submodule(parent)
    before = getattr(owner, leaf)
    setattr(owner, leaf, module)
    try:
        yield
    finally:
        setattr(owner, leaf, before)


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

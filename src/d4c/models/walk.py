"""A tower walked once, so that a change in one layer costs only what comes after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from d4c.models.clip import Clip
from d4c.models.parts import Part, TowerName, run_in_batches, tower_parts
from d4c.models.sharing import sharing_copy


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
        model = sharing_copy(model)
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
    kept = getattr(owner, leaf)
    setattr(owner, leaf, module)
    try:
        yield
    finally:
        setattr(owner, leaf, kept)

"""Another library's parameters to canonical ones, by a table of names."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from d4c.artifact.open_clip_names import Entry
from d4c.errors import ModelFileError


def renamed_parameters(
    theirs: dict[str, Tensor], table: Iterable[Entry], source: str, ignored: tuple[str, ...]
) -> dict[str, Tensor]:
    """Translate names and layouts; shapes are checked where the model is assembled.

    Args:
        ignored: endings of names that are no parameters.

    Raises:
        ModelFileError: a parameter is missing, or one is left over.
    """
    ours: dict[str, Tensor] = {}
    left = dict(theirs)
    for entry in table:
        if entry.theirs not in left:
            raise ModelFileError(f"{source}: parameter {entry.theirs} is missing")
        tensor = left.pop(entry.theirs)
        if entry.batched and tensor.ndim and tensor.shape[0] == 1:
            tensor = tensor[0]
        for name, part in (
            zip(entry.ours, tensor.tensor_split(len(entry.ours)), strict=True)
            if tensor.ndim
            else [(entry.ours[0], tensor)]
        ):
            ours[name] = part.T if entry.transposed and part.ndim == 2 else part
    unknown = sorted(name for name in left if not name.endswith(ignored))
    if unknown:
        raise ModelFileError(f"{source}: unexpected parameter {unknown[0]}")
    return ours

"""How large a model's file will be, before there is one."""

from __future__ import annotations

import json
from dataclasses import dataclass

from d4c.artifact.folder import WEIGHTS_METADATA
from d4c.models import Clip
from d4c.quantizers.scheme import Scheme

DTYPES = ("F32", "I32", "I8", "U8")  # in the order in which a safetensors file has them; by name within each


def stored_bytes(clip: Clip, scheme: Scheme) -> int:
    """What model.safetensors will take: its data and, before it, a header that says what lies where.

    Args:
        clip: float, folded; scheme: of a recipe that has a file, not of a simulation.
    """
    entries: dict[str, object] = {"__metadata__": WEIGHTS_METADATA}
    stored, end = _stored(clip, scheme), 0
    for name in sorted(stored, key=lambda name: (DTYPES.index(stored[name].dtype), name)):
        tensor = stored[name]
        place = [end, end + tensor.size]
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": place}
        end += tensor.size
    header = len(json.dumps(entries, separators=(",", ":")))
    return 8 + -(-header // 8) * 8 + end  # the header's own length comes first, and spaces fill its last 8 bytes


@dataclass(frozen=True)
class _Stored:
    """A tensor as the file has it; its size in bytes."""

    dtype: str
    shape: list[int]
    size: int


def _stored(clip: Clip, scheme: Scheme) -> dict[str, _Stored]:
    """What `freeze` will put into the file, by name."""
    stored = {}
    for name, tensor in clip.state_dict().items():
        layer, _, kind = name.rpartition(".")
        given, shape = scheme.weights.get(layer), [*tensor.shape]
        if given is None or kind != "weight":
            integer = given is not None and bool(scheme.tensors)  # a bias beside whole numbers
            stored[name] = _Stored("I32" if integer else "F32", shape, 4 * tensor.numel())
            continue
        size, outputs = given.code_bytes(tensor.numel()), len(tensor)
        dtype = "U8" if given.packed or not given.grid.symmetric else "I8"
        stored[name] = _Stored(dtype, [size] if given.packed else shape, size)
        for about in ("scale",) if given.grid.symmetric else ("scale", "zero_point"):
            stored[f"{layer}.weight_{about}"] = _Stored("F32", [outputs], 4 * outputs)
    for site in scheme.tensors:
        stored |= dict.fromkeys((f"{site}.scale", f"{site}.zero_point"), _Stored("F32", [1], 4))
    return stored

"""How large a model's file will be, before there is one."""

from __future__ import annotations

from d4c.models import Clip
from d4c.quantizers.scheme import Scheme

HEADER_BYTES = 160  # of a tensor in a safetensors header, beside its name: type, shape, place


def stored_bytes(clip: Clip, scheme: Scheme) -> int:
    """What model.safetensors will take, rounded up by what its header leaves open.

    Args:
        clip: float, folded.
    """
    total, names = 0, 0
    for name, tensor in clip.state_dict().items():
        layer, _, kind = name.rpartition(".")
        given = scheme.weights.get(layer)
        if given is None or kind != "weight":
            total += 4 * tensor.numel()  # float32, or a bias of int32
        else:
            scales = len(tensor) * (1 if given.grid.symmetric else 2)
            total += 4 * scales + given.code_bytes(tensor.numel())
            names += len(layer) + HEADER_BYTES
        names += len(name) + HEADER_BYTES
    for site in (*scheme.tensors, *scheme.inputs):
        total += 8 * 2
        names += 2 * (len(site) + HEADER_BYTES)
    return total + names

"""How large a model's file will be, before there is one."""

from __future__ import annotations

from d4c.models import Clip
from d4c.quantizers.scheme import Scheme

ENTRY_BYTES = len('"":{"dtype":"F32","shape":[],"data_offsets":[,]},')  # of a tensor, beside name, shape and place
OTHER_BYTES = 128  # the header's length and padding, and what it says of the whole file


def stored_bytes(clip: Clip, scheme: Scheme) -> int:
    """What model.safetensors will take, or a few bytes for each tensor more: all places count as digits of the last.

    Args:
        clip: float, folded.
    """
    sizes: dict[str, tuple[int, list[int]]] = {}  # bytes and shape of each tensor
    for name, tensor in clip.state_dict().items():
        layer, _, kind = name.rpartition(".")
        given = scheme.weights.get(layer)
        if given is None or kind != "weight":
            sizes[name] = (4 * tensor.numel(), [*tensor.shape])  # float32, or a bias of int32
        else:
            sizes[name] = (given.code_bytes(tensor.numel()), [*tensor.shape])
            for about in ("scale",) if given.grid.symmetric else ("scale", "zero_point"):
                sizes[f"{layer}.weight_{about}"] = (4 * len(tensor), [len(tensor)])
    for site in scheme.tensors:
        sizes |= {f"{site}.{about}": (4, []) for about in ("scale", "zero_point")}
    for site in scheme.inputs:
        sizes |= {f"{site}.input_{about}": (4, []) for about in ("scale", "zero_point")}
    data = sum(num_bytes for num_bytes, _ in sizes.values())
    place = 2 * len(str(data))
    header = sum(ENTRY_BYTES + len(name) + len(",".join(map(str, shape))) + place for name, (_, shape) in sizes.items())
    return data + header + OTHER_BYTES

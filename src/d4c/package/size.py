"""How large a model's file will be, before there is one."""

from __future__ import annotations

import json

from d4c.artifact import FORMAT_VERSION
from d4c.models import Clip
from d4c.quantizers.scheme import Scheme

DTYPES = ("F32", "I32", "I8", "U8")  # in the order in which a safetensors file has them; by name within each


def stored_bytes(clip: Clip, scheme: Scheme) -> int:
    """What model.safetensors will take.

    Args:
        clip: float, folded.
    """
    tensors: dict[str, tuple[str, list[int], int]] = {}  # type, shape and bytes of each
    for name, tensor in clip.state_dict().items():
        layer, _, kind = name.rpartition(".")
        given, shape = scheme.weights.get(layer), [*tensor.shape]
        if given is None or kind != "weight":
            whole = given is not None and bool(scheme.tensors)  # a bias of a layer that runs in integers
            tensors[name] = ("I32" if whole else "F32", shape, 4 * tensor.numel())
        else:
            size = given.code_bytes(tensor.numel())
            whole_type = "U8" if given.packed or not given.grid.symmetric else "I8"
            tensors[name] = (whole_type, [size] if given.packed else shape, size)
            for about in ("scale",) if given.grid.symmetric else ("scale", "zero_point"):
                tensors[f"{layer}.weight_{about}"] = ("F32", [len(tensor)], 4 * len(tensor))
    for site in scheme.tensors:
        tensors |= {f"{site}.{about}": ("F32", [1], 4) for about in ("scale", "zero_point")}
    for layer in scheme.inputs:
        tensors |= {f"{layer}.input_{about}": ("F32", [1], 4) for about in ("scale", "zero_point")}
    header: dict[str, object] = {"__metadata__": {"d4c.format_version": str(FORMAT_VERSION)}}
    end = 0
    for name, (dtype, shape, size) in sorted(tensors.items(), key=lambda item: (DTYPES.index(item[1][0]), item[0])):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end

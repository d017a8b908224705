"""An artifact's weights as floats, for consumers that have no integer kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.artifact import Artifact
from d4c.artifact.architecture import ClipConfig, ResNetConfig
from d4c.artifact.packing import unpack_nibbles
from d4c.errors import RecipeError
from d4c.export.source import Source, described


def dequantized(artifact: Artifact) -> Source:
    """See an artifact as a float model: weights are codes times scales, activations are not quantized.

    Raises:
        RecipeError: the recipe is a simulation, whose weights alone say little.
    """
    quantization = artifact.quantization
    if quantization["runs_as"] == "simulation":
        raise RecipeError(
            f"{artifact.folder}: recipe {quantization['recipe']} runs as simulation; "
            "w8a8, w6a6, w4a8, w8 and w4 can be exported to open_clip"
        )
    formats = quantization["weights"]
    grids = {f"{layer}.{kind}" for layer in formats for kind in ("weight_scale", "weight_zero_point")}
    grids |= {f"{site}.{kind}" for site in quantization["tensors"] for kind in ("scale", "zero_point")}
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in artifact.arrays.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in formats:
            arrays[name] = _weight(artifact, layer)
        elif kind == "bias" and array.dtype == np.int32:
            arrays[name] = _bias(artifact, layer)
        elif name not in grids:
            arrays[name] = array
    return described(artifact, arrays, {}, {})


def _weight(artifact: Artifact, layer: str) -> NDArray[np.float32]:
    about = artifact.quantization["weights"][layer]
    codes = artifact.arrays[f"{layer}.weight"]
    if about["packed"]:
        codes = unpack_nibbles(codes, tuple(about["shape"]))
    rows = (-1, *[1] * (codes.ndim - 1))  # one scale a row
    scale = artifact.arrays[f"{layer}.weight_scale"].reshape(rows)
    values = codes.astype(np.float32)
    if f"{layer}.weight_zero_point" in artifact.arrays:
        values = values - artifact.arrays[f"{layer}.weight_zero_point"].reshape(rows)
    return np.asarray(values * scale, np.float32)


def _bias(artifact: Artifact, layer: str) -> NDArray[np.float32]:
    """int32 codes times input scale x weight scale."""
    site = input_site(artifact.architecture, layer)
    scale = artifact.arrays[f"{site}.scale"] * artifact.arrays[f"{layer}.weight_scale"]  # [out], the float32 product
    return (artifact.arrays[f"{layer}.bias"].astype(np.float64) * scale).astype(np.float32)


_LINEAR_READS = {"q": "input", "k": "input", "v": "input", "out": "context", "fc1": "input", "fc2": "hidden"}


def input_site(config: ClipConfig, layer: str) -> str:
    """The tensor site that a layer reads."""
    parent, _, leaf = layer.rpartition(".")
    if leaf == "projection":
        return f"{parent}.pooled"
    if layer == "image.patch_embedding":
        return "image.pixels"
    if layer == "image.pool.q":
        return "image.pool.q_input"
    if leaf in _LINEAR_READS:
        return f"{parent}.{_LINEAR_READS[leaf]}"
    assert isinstance(config.image, ResNetConfig)
    return _convolution_reads(config.image)[layer]


def _convolution_reads(config: ResNetConfig) -> dict[str, str]:
    stem = "image.stem"
    reads = {
        f"{stem}.conv1": "image.pixels",
        f"{stem}.conv2": f"{stem}.conv1_out",
        f"{stem}.conv3": f"{stem}.conv2_out",
    }
    incoming = f"{stem}.pool_out"
    for stage, depth in enumerate(config.layers, start=1):
        for i in range(depth):
            block, strided = f"image.layer{stage}.{i}", stage > 1 and i == 0
            reads |= {f"{block}.conv1": incoming, f"{block}.conv2": f"{block}.conv1_out"}
            reads[f"{block}.conv3"] = f"{block}.pool_out" if strided else f"{block}.conv2_out"
            reads[f"{block}.shortcut.conv"] = f"{block}.shortcut.pool_out" if strided else incoming
            incoming = f"{block}.sum_out"
    return reads

"""An artifact's integers back to a model that computes with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d4c.artifact import Artifact
from d4c.artifact.packing import unpack_nibbles
from d4c.errors import ArtifactError
from d4c.models import QuantizedClip, wrap
from d4c.models.clip import Clip, build_towers
from d4c.models.resnet import ModifiedResNet, Shortcut
from d4c.quantizers.grids import AffineGrid, Granularity, IntegerGrid, PerChannel, PerTensor, PerToken, TensorFormat
from d4c.quantizers.integer_layers import IntegerAveragePool, IntegerSum, integer_layer
from d4c.quantizers.layers import QuantConv2d, QuantLinear, UniformQuantizer
from d4c.quantizers.ranges import Ranges
from d4c.quantizers.scheme import Scheme


def thaw(artifact: Artifact) -> QuantizedClip:
    """Rebuild the quantized model; its weights and biases are exactly the integers times their scales.

    Raises:
        ArtifactError: tensors and configuration do not fit each other.
    """
    try:
        quantization = artifact.quantization
        scheme = Scheme(*(_formats(quantization[kind]) for kind in ("weights", "tensors", "inputs")))
        image, text = build_towers(artifact.architecture)
        shapes = {f"image.{k}": v.shape for k, v in image.state_dict().items()}
        shapes |= {f"text.{k}": v.shape for k, v in text.state_dict().items()}
        ranges = _ranges(artifact.arrays, scheme, shapes)
        state = {n: _parameter(artifact, scheme, ranges, n, shape) for n, shape in shapes.items()}
        for prefix, tower in (("image.", image), ("text.", text)):
            tower.load_state_dict({k: state[prefix + k] for k in tower.state_dict()}, assign=True)
        clip = Clip(
            artifact.architecture,
            image,
            text,
            torch.from_numpy(artifact.arrays["logit_scale"].copy()),
            torch.from_numpy(artifact.arrays["logit_bias"].copy()) if "logit_bias" in artifact.arrays else None,
            tokenizer=artifact.tokenizer,
            preprocess=artifact.preprocess,
            source=artifact.manifest["source"],
            fingerprint=artifact.manifest["fingerprint"],
        )
        _set_biases(clip, artifact, ranges)
        return wrap(clip, scheme, ranges)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{artifact.folder}: tensors and config.json do not fit each other: {error}") from error


def thaw_integers(artifact: Artifact) -> QuantizedClip:
    """Rebuild the model with every layer computed in whole numbers, bias codes included: a reference for runtimes.

    Slower than `thaw`, whose float32 sums differ from it by a code now and then.

    Raises:
        ArtifactError: as for `thaw`, or the recipe is not deployable.
    """
    if not artifact.quantization["deployable"]:
        raise ArtifactError(f"{artifact.folder}: recipe {artifact.quantization['recipe']} has no integer form")
    quantized = thaw(artifact)
    quantizers = quantized.tensor_quantizers()
    inputs = quantized.input_sites()
    for layer, site in inputs.items():
        module = quantized.get_submodule(layer)
        if isinstance(module, QuantLinear | QuantConv2d):
            codes = artifact.arrays.get(f"{layer}.bias")
            bias = None if codes is None else _tensor(codes)
            parent, _, leaf = layer.rpartition(".")
            replaced = integer_layer(module, quantizers[site], bias, quantizers.get(f"{layer}_out"))
            setattr(quantized.get_submodule(parent), leaf, replaced)
    if isinstance(quantized.image, ModifiedResNet):
        _add_codes(quantized.image, {site.removeprefix("image."): q for site, q in quantizers.items()})
    return quantized


def _add_codes(tower: ModifiedResNet, quantizers: Mapping[str, UniformQuantizer]) -> None:
    """Put integer pools and sums in place; quantizers by path in the tower."""
    tower.stem.pool = IntegerAveragePool(2, quantizers["stem.conv3_out"], quantizers["stem.pool_out"])
    reads = tower.input_sites()
    for name, block in tower.named_blocks():
        incoming = residual = quantizers[reads[f"{name}.conv1"]]
        if isinstance(block.shortcut, Shortcut):
            residual = quantizers[f"{name}.shortcut.conv_out"]
        if block.stride > 1:
            block.pool = IntegerAveragePool(
                block.stride, quantizers[f"{name}.conv2_out"], quantizers[f"{name}.pool_out"]
            )
            block.shortcut.pool = IntegerAveragePool(block.stride, incoming, quantizers[f"{name}.shortcut.pool_out"])
        block.sum = IntegerSum(quantizers[f"{name}.conv3_out"], residual, quantizers[f"{name}.sum_out"])


def _formats(described: Mapping[str, Mapping[str, Any]]) -> dict[str, TensorFormat]:
    formats = {}
    for site, about in described.items():
        granularity: Granularity = PerToken() if about.get("per_token") else PerTensor()
        if "channel_axis" in about:
            granularity = PerChannel(about["channel_axis"])
        grid = IntegerGrid(about["bits"], about["symmetric"])
        formats[site] = TensorFormat(grid, granularity, about.get("pair_safe", False))
    return formats


def _ranges(arrays: Mapping[str, NDArray[Any]], scheme: Scheme, shapes: Mapping[str, torch.Size]) -> Ranges:
    weights = {}
    for layer, weight_format in scheme.weights.items():
        shape = (-1, *[1] * (len(shapes[f"{layer}.weight"]) - 1))
        scale = _tensor(arrays[f"{layer}.weight_scale"]).reshape(shape)
        zero = arrays.get(f"{layer}.weight_zero_point")
        zero_point = torch.zeros_like(scale) if zero is None else _tensor(zero).reshape(shape)
        weights[layer] = AffineGrid(scale, zero_point, weight_format.grid)
    tensors = {
        s: _activation_grid(arrays[f"{s}.scale"], arrays[f"{s}.zero_point"], f)
        for s, f in scheme.tensors.items()
        if not isinstance(f.granularity, PerToken)
    }
    inputs = {
        s: _activation_grid(arrays[f"{s}.input_scale"], arrays[f"{s}.input_zero_point"], f)
        for s, f in scheme.inputs.items()
        if not isinstance(f.granularity, PerToken)
    }
    return Ranges(weights, tensors, inputs)


def _activation_grid(scale: NDArray[Any], zero_point: NDArray[Any], about: TensorFormat) -> AffineGrid:
    shape = (-1,) if isinstance(about.granularity, PerChannel) else ()
    return AffineGrid(_tensor(scale).reshape(shape), _tensor(zero_point).reshape(shape), about.grid)


def _parameter(artifact: Artifact, scheme: Scheme, ranges: Ranges, name: str, shape: torch.Size) -> Tensor:
    """A float parameter of the unwrapped model; quantized weights are their codes times the scale."""
    layer, _, kind = name.rpartition(".")
    array = artifact.arrays[name]
    if kind == "bias" and array.dtype == np.int32:
        return torch.zeros(shape)  # set once the input scales are known
    if kind != "weight" or layer not in scheme.weights:
        return _tensor(array).reshape(shape).clone()  # the wrapped model shares it, and the artifact must not
    if artifact.quantization["weights"][layer]["packed"]:
        array = unpack_nibbles(array, tuple(shape))
    affine = ranges.weights[layer]
    return (_tensor(array.astype(np.float32)).reshape(shape) - affine.zero_point) * affine.scale


def _set_biases(clip: Clip, artifact: Artifact, ranges: Ranges) -> None:
    for layer, site in clip.input_sites().items():
        codes = artifact.arrays.get(f"{layer}.bias")
        if codes is not None and codes.dtype == np.int32:
            scale = ranges.tensors[site].scale * ranges.weights[layer].scale.reshape(-1)  # [out]
            clip.get_submodule(layer).bias.data = _tensor(codes.astype(np.float64)).mul(scale).float()


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))

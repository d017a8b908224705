"""A quantized model to integers."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from d4c.artifact import FORMAT_VERSION
from d4c.artifact.packing import pack_nibbles
from d4c.errors import CalibrationError
from d4c.models import QuantizedClip
from d4c.quantizers.grids import PerChannel, PerToken, TensorFormat
from d4c.quantizers.layers import QuantConv2d, QuantEmbedding, QuantLinear, UniformQuantizer
from d4c.quantizers.pair_safe import is_pair_safe
from d4c.recipes import Recipe

Arrays = dict[str, NDArray[Any]]


def freeze(quantized: QuantizedClip, recipe: Recipe) -> tuple[Arrays, dict[str, Any]]:
    """Turn weights into codes and biases into int32, and say so in a configuration.

    Returns:
        tensors for model.safetensors and the content of config.json, as `d4c.artifact.folder` describes them.

    Raises:
        CalibrationError: a bias does not fit, or an 8-bit weight is not pair-safe where it must be.
    """
    arrays: Arrays = {}
    for site, quantizer in quantized.tensor_quantizers().items():
        arrays[f"{site}.scale"] = _numpy(quantizer.scale.reshape(-1))
        arrays[f"{site}.zero_point"] = _numpy(quantizer.zero_point.reshape(-1))
    frozen: set[str] = set()
    for layer in quantized.scheme.weights:
        module = quantized.get_submodule(layer)
        assert isinstance(module, QuantLinear | QuantConv2d | QuantEmbedding)
        arrays |= _freeze_weight(module, layer, quantized.scheme.weights[layer])
        if not isinstance(module, QuantEmbedding):
            arrays |= _freeze_input(module, layer)
            arrays |= _freeze_bias(quantized, module, layer, recipe.deployable)
        frozen.add(f"{layer}.")
    for name, tensor in quantized.state_dict().items():
        if not name.startswith(tuple(frozen)) and name not in arrays and not _belongs_to_quantizer(quantized, name):
            arrays[name] = _numpy(tensor.float())
    return arrays, _config(quantized, recipe)


def _freeze_weight(module: QuantLinear | QuantConv2d | QuantEmbedding, layer: str, given: TensorFormat) -> Arrays:
    weight = module.weight
    codes = weight.codes()
    if given.pair_safe and not is_pair_safe(codes):
        raise CalibrationError(f"{layer}: 8-bit codes are not pair-safe")
    whole = codes.to(torch.int8 if weight.grid.symmetric else torch.uint8).cpu().numpy()
    arrays: Arrays = {
        f"{layer}.weight": pack_nibbles(whole) if given.packed else whole,
        f"{layer}.weight_scale": _numpy(weight.scale.reshape(-1)),
    }
    if not weight.grid.symmetric:
        arrays[f"{layer}.weight_zero_point"] = _numpy(weight.zero_point.reshape(-1))
    return arrays


def _freeze_input(module: QuantLinear | QuantConv2d, layer: str) -> Arrays:
    quantizer = module.input_quantizer
    if not isinstance(quantizer, UniformQuantizer):
        return {}
    return {
        f"{layer}.input_scale": _numpy(quantizer.scale.reshape(-1)),
        f"{layer}.input_zero_point": _numpy(quantizer.zero_point.reshape(-1)),
    }


def _freeze_bias(quantized: QuantizedClip, module: QuantLinear | QuantConv2d, layer: str, deployable: bool) -> Arrays:
    bias: Tensor | None = module.bias
    if bias is None:
        return {}
    if not deployable:
        return {f"{layer}.bias": _numpy(bias)}
    source = quantized.get_submodule(quantized.input_sites()[layer])
    assert isinstance(source, UniformQuantizer)
    scale = (source.scale * module.weight.scale.reshape(-1)).cpu().double()  # [out], the float32 product
    codes = (bias.cpu().double() / scale).round()  # [out]
    if not bool((codes.abs() < 2**31 - 1).all()):
        raise CalibrationError(f"{layer}: a bias does not fit 32 bits in units of input scale x weight scale")
    return {f"{layer}.bias": codes.to(torch.int32).numpy()}


def _config(quantized: QuantizedClip, recipe: Recipe) -> dict[str, Any]:
    scheme = quantized.scheme
    shapes = quantized.quantized_weights()
    return {
        "model_type": "d4c_clip",
        "architecture": quantized.config.to_dict(),
        "quantization_config": {
            "quant_method": "d4c",
            "format_version": FORMAT_VERSION,
            "recipe": recipe.name,
            "deployable": recipe.deployable,
            "runs_as": recipe.runs_as,
            "weights": {
                layer: _describe(f) | {"packed": f.packed, "shape": [*shapes[layer].values.shape]}
                for layer, f in scheme.weights.items()
            },
            "tensors": {site: _describe(f) for site, f in scheme.tensors.items()},
            "inputs": {layer: _describe(f) for layer, f in scheme.inputs.items()},
        },
    }


def _describe(tensor_format: TensorFormat) -> dict[str, Any]:
    grid, granularity = tensor_format.grid, tensor_format.granularity
    described: dict[str, Any] = {"bits": grid.num_bits, "symmetric": grid.symmetric}
    if isinstance(granularity, PerChannel):
        described["channel_axis"] = granularity.axis
    if isinstance(granularity, PerToken):
        described["per_token"] = True
    if tensor_format.pair_safe:
        described["pair_safe"] = True
    return described


def _belongs_to_quantizer(quantized: QuantizedClip, name: str) -> bool:
    return isinstance(quantized.get_submodule(name.rpartition(".")[0]), UniformQuantizer)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().contiguous().numpy()

"""What is reconstructed together: the layers that read one tensor, or a whole residual block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from d4c.models import Clip, QuantizedClip
from d4c.models.parts import Part
from d4c.models.resnet import Bottleneck
from d4c.quantizers.layers import GridWeight, QuantConv2d, QuantLayer, QuantLinear, UniformQuantizer

UnitKind = Literal["layer", "block", "auto"]


class SharedInput(nn.Module):
    """Layers that read one tensor, behind its quantizer; their outputs side by side."""

    def __init__(self, quantizer: nn.Module, layers: list[nn.Module]) -> None:
        super().__init__()
        self.quantizer, self.layers = quantizer, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.quantizer(x)
        return torch.cat([layer(x) for layer in self.layers], dim=channel_dim(x))


def channel_dim(x: Tensor) -> int:
    """1 in feature maps, last elsewhere."""
    return 1 if x.ndim == 4 else -1


@dataclass(frozen=True)
class Unit:
    """Weights and activation scales that are learned together, and how to run what they are in.

    Args:
        name: for files and reports.
        module: of the quantized model; reference: its counterpart in the float model.
        input_of: path, in the quantized model, of the module whose input is the unit's input; reference_input_of:
            the same in the float model.
        weights: path in `module` of each weight on a grid, by layer site.
        quantizers: path in `module` of each activation quantizer that learns.
        pair_safe: layer sites whose codes must stay pair-safe.
        whole_samples: whether samples must stay whole (blocks, convolutions) or fall apart into tokens.
    """

    name: str
    module: nn.Module
    reference: nn.Module
    input_of: str
    reference_input_of: str
    weights: Mapping[str, str]
    quantizers: tuple[str, ...]
    pair_safe: frozenset[str]
    whole_samples: bool

    def grid_weight(self, site: str) -> GridWeight:
        """The weight of a layer in the quantized model."""
        module = self.module.get_submodule(self.weights[site])
        assert isinstance(module, GridWeight)
        return module

    def layer(self, site: str) -> QuantLinear | QuantConv2d:
        """A layer in the quantized model."""
        module = self.module.get_submodule(self.weights[site].removesuffix(".weight"))
        assert isinstance(module, QuantLinear | QuantConv2d)
        return module

    def bias(self, site: str) -> Tensor | None:
        """The bias of a layer in the quantized model."""
        return self.layer(site).bias

    def quantizer(self, path: str) -> UniformQuantizer:
        """An activation quantizer that learns."""
        module = self.module.get_submodule(path)
        assert isinstance(module, UniformQuantizer)
        return module

    def float_weight(self, site: str) -> Tensor:
        """The weight of a layer in the float model."""
        return self.reference.get_parameter(self.weights[site])

    def float_layer(self, site: str) -> nn.Linear | nn.Conv2d:
        """A layer in the float model."""
        module = self.reference.get_submodule(self.weights[site].removesuffix(".weight"))
        assert isinstance(module, nn.Linear | nn.Conv2d)
        return module


def units_of(part: Part, quantized: QuantizedClip, clip: Clip, unit: UnitKind) -> list[Unit]:
    """The units of one part, in the order of the forward pass; tables and what stayed float are not among them.

    Args:
        unit: "auto" is a block for a bottleneck and layers everywhere else.
    """
    block = None if part.name.endswith((".embed", ".head")) else quantized.get_submodule(part.name)
    if block is not None and (unit == "block" or (unit == "auto" and isinstance(block, Bottleneck))):
        whole = _block_unit(part.name, quantized, clip)
        return [whole] if whole.weights else []
    return _layer_units(part, quantized, clip)


def _block_unit(path: str, quantized: QuantizedClip, clip: Clip) -> Unit:
    block = quantized.get_submodule(path)
    return Unit(
        name=path,
        module=block,
        reference=clip.get_submodule(path),
        input_of=path,
        reference_input_of=path,
        weights={
            f"{path}.{n.removesuffix('.weight')}": n for n, m in block.named_modules() if isinstance(m, GridWeight)
        },
        quantizers=_quantizers(block),
        pair_safe=_pair_safe(quantized, path),
        whole_samples=True,
    )


def _layer_units(part: Part, quantized: QuantizedClip, clip: Clip) -> list[Unit]:
    together: dict[str, list[str]] = {}
    for layer, site in sites_of_wrapped(quantized, clip).items():
        if part.owns(layer) and isinstance(quantized.get_submodule(layer), QuantLayer):
            alone = isinstance(_input_quantizer(quantized, layer), UniformQuantizer)
            together.setdefault(layer if alone else site, []).append(layer)
    return [_layer_unit(part, quantized, clip, site, layers) for site, layers in together.items()]


def _layer_unit(part: Part, quantized: QuantizedClip, clip: Clip, site: str, layers: list[str]) -> Unit:
    modules = [quantized.get_submodule(layer) for layer in layers]
    own_site = site not in layers and part.owns(
        site
    )  # else the tensor was quantized before it came in, or in the layer
    module = SharedInput(quantized.get_submodule(site) if own_site else nn.Identity(), modules)
    return Unit(
        name="+".join([layers[0], *(layer.rpartition(".")[2] for layer in layers[1:])]),
        module=module,
        reference=SharedInput(nn.Identity(), [clip.get_submodule(layer) for layer in layers]),
        input_of=site if own_site else layers[0],
        reference_input_of=layers[0],
        weights={layer: f"layers.{i}.weight" for i, layer in enumerate(layers)},
        quantizers=_quantizers(module),
        pair_safe=_pair_safe(quantized, *layers),
        whole_samples=any(isinstance(m, QuantConv2d) for m in modules),
    )


def sites_of_wrapped(quantized: QuantizedClip, clip: Clip) -> dict[str, str]:
    """The tensor site that each layer reads, for layers that stayed layers in the wrapped model."""
    return {layer: site for layer, site in clip.input_sites().items() if layer in quantized.scheme.weights}


def _input_quantizer(quantized: QuantizedClip, layer: str) -> nn.Module:
    module = quantized.get_submodule(layer)
    assert isinstance(module, QuantLinear | QuantConv2d)
    return module.input_quantizer


def _pair_safe(quantized: QuantizedClip, *paths: str) -> frozenset[str]:
    """Which layers at or below some paths must stay pair-safe."""
    own = [s for s in quantized.scheme.weights if s in paths or s.startswith(tuple(f"{path}." for path in paths))]
    return frozenset(site for site in own if quantized.scheme.weights[site].pair_safe)


def _quantizers(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, m in module.named_modules() if isinstance(m, UniformQuantizer))

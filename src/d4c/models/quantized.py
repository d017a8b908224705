"""A wrapped CLIP: the canonical model with quantizers in its tensor sites and weights on grids."""

from __future__ import annotations

from torch import nn

from d4c.models.clip import Clip
from d4c.models.sharing import sharing_copy
from d4c.models.sites import LAYER_TYPES, is_attention_factor, layer_sites, tensor_sites
from d4c.quantizers.grids import PerToken
from d4c.quantizers.layers import (
    GridWeight,
    QuantConv2d,
    QuantEmbedding,
    QuantLayer,
    QuantLinear,
    TokenQuantizer,
    UniformQuantizer,
)
from d4c.quantizers.ranges import Ranges
from d4c.quantizers.scheme import Scheme, Sites


class QuantizedClip(Clip):
    """A `Clip` whose towers were wrapped; it encodes as the integers would.

    Args:
        scheme: what was quantized, and how.
        clip: whose towers these are now; everything but them is shared with it.
    """

    def __init__(self, clip: Clip, scheme: Scheme) -> None:
        super().__init__(
            clip.config,
            clip.image,
            clip.text,
            clip.logit_scale,
            clip.logit_bias,
            tokenizer=clip.tokenizer,
            preprocess=clip.preprocess,
            source=clip.source,
            fingerprint=clip.fingerprint,
        )
        self.scheme = scheme

    def quantized_weights(self) -> dict[str, GridWeight]:
        """Weights on grids, by layer."""
        return {name: module.weight for name, module in self.named_modules() if isinstance(module, QuantLayer)}

    def tensor_quantizers(self) -> dict[str, UniformQuantizer]:
        """Quantizers in tensor sites, by site."""
        return {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, UniformQuantizer) and not name.endswith(".input_quantizer")
        }


def sites_of(clip: Clip) -> Sites:
    """Everything in a model that a scheme can name."""
    tensors = tuple(tensor_sites(clip))
    return Sites(
        layers=tuple(layer_sites(clip)),
        embeddings=frozenset({"text.token_embedding"}),
        tensors=tensors,
        attention_factors=frozenset(site for site in tensors if is_attention_factor(site)),
        inputs=clip.input_sites(),
        convolutions=frozenset(name for name, module in clip.named_modules() if isinstance(module, nn.Conv2d)),
    )


def wrap(clip: Clip, scheme: Scheme, ranges: Ranges) -> QuantizedClip:
    """Put quantizers where the scheme wants them; weights are rounded to nearest on the grids of `ranges`.

    Args:
        ranges: a placed grid for every tensor that the scheme names, `PerToken` ones excepted.

    Returns:
        a new model, which shares with `clip` what stays float; `clip` is unchanged.

    Raises:
        KeyError: the scheme names a site that the model or the ranges lack.
    """
    unknown = {*scheme.weights, *scheme.inputs} - {*layer_sites(clip)} | {*scheme.tensors} - {*tensor_sites(clip)}
    if unknown:
        raise KeyError(min(unknown))
    wrapped = sharing_copy(clip)
    for site, tensor_format in scheme.tensors.items():
        dynamic = isinstance(tensor_format.granularity, PerToken)
        quantizer = TokenQuantizer(tensor_format.grid) if dynamic else UniformQuantizer(ranges.tensors[site])
        _replace(wrapped, site, quantizer)
    for layer in layer_sites(wrapped):
        if layer in scheme.weights:
            _replace(wrapped, layer, _quantized_layer(wrapped.get_submodule(layer), layer, scheme, ranges))
    return QuantizedClip(wrapped, scheme)


def _quantized_layer(module: nn.Module, layer: str, scheme: Scheme, ranges: Ranges) -> nn.Module:
    input_quantizer: nn.Module = nn.Identity()
    if layer in scheme.inputs:
        input_format = scheme.inputs[layer]
        dynamic = isinstance(input_format.granularity, PerToken)
        input_quantizer = TokenQuantizer(input_format.grid) if dynamic else UniformQuantizer(ranges.inputs[layer])
    assert isinstance(module, LAYER_TYPES)
    affine = ranges.weights[layer]
    if isinstance(module, nn.Embedding):
        return QuantEmbedding(module, affine)
    if isinstance(module, nn.Conv2d):
        return QuantConv2d(module, affine, input_quantizer)
    return QuantLinear(module, affine, input_quantizer)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)

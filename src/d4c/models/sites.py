"""Places of a canonical CLIP where a tensor can be quantized, each with a name.

A layer site is a linear, a convolution or an embedding, named by its path (`image.blocks.3.attention.q`): its weight
can be quantized. A tensor site is a value between modules (`image.blocks.3.attention.input`), marked in the model by a
`TensorSite`: it can be quantized once, for all its readers.
"""

from __future__ import annotations

from torch import nn


class TensorSite(nn.Identity):
    """A named tensor on its way through the model; `wrap` may put a quantizer in its place."""


LAYER_TYPES = (nn.Linear, nn.Conv2d, nn.Embedding)


def layer_sites(model: nn.Module) -> list[str]:
    """Names of all layers whose weights can be quantized, in the order of the forward pass."""
    return [name for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)]


def tensor_sites(model: nn.Module) -> list[str]:
    """Names of all tensors that can be quantized, part by part in the order of the forward pass."""
    return [name for name, module in model.named_modules() if isinstance(module, TensorSite)]


def is_attention_factor(site: str) -> bool:
    """Whether a tensor site is a factor of one of attention's two products."""
    return site.endswith((".q_out", ".k_out", ".v_out", ".probabilities"))

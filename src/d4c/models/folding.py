"""Rewriting a float model so that it quantizes better, without changing what it computes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from d4c.models.attention import AttentionProducts, Block
from d4c.models.clip import Clip
from d4c.models.resnet import Bottleneck, ModifiedResNet, Shortcut, Stem
from d4c.models.sharing import replace_parameter, sharing_copy


def fold_batchnorm(clip: Clip) -> Clip:
    """Absorb every BatchNorm into the convolution before it.

    W' = W γ / sqrt(v + ε), b' = β − m γ / sqrt(v + ε), per output channel; the BatchNorm becomes the identity.

    Returns:
        a new model; one without BatchNorm comes back as a copy.
    """
    clip = sharing_copy(clip)
    for module in clip.image.modules():
        if isinstance(module, Stem | Bottleneck):
            for i in (1, 2, 3):
                _fold_pair(module, f"conv{i}", f"bn{i}")
        elif isinstance(module, Shortcut):
            _fold_pair(module, "conv", "bn")
    if isinstance(clip.image, ModifiedResNet):
        clip.image.config = dataclasses.replace(clip.image.config, batch_norm=False)
        clip.config = dataclasses.replace(clip.config, image=clip.image.config)
    return clip


def _fold_pair(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
        return
    assert norm.running_var is not None
    assert norm.running_mean is not None
    device = conv.weight.device
    weight, gamma, beta, mean, variance = (  # on the CPU: not every device has float64
        t.detach().cpu().double() for t in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    factor = gamma / (variance + norm.eps).sqrt()  # [out]
    replace_parameter(conv, "weight", (weight * factor[:, None, None, None]).float().to(device))
    replace_parameter(conv, "bias", (beta - mean * factor).float().to(device))
    setattr(parent, norm_name, nn.Identity())


def fold_layernorm(clip: Clip, shifts: dict[str, Tensor], ratios: dict[str, Tensor]) -> Clip:
    """Shift and rescale the channels that a LayerNorm hands to its linears, and undo it in their weights.

    γ' = γ / r, β' = (β − m) / r, W' = W diag(r), b' = b + W m (RepQ-ViT, arXiv:2212.08254, without its rounding of m
    and r). q, k and v share one m and one r; fc1 has its own.

    Args:
        shifts: m by tensor site (`image.blocks.0.attention.input`), [channel]; sites not named stay as they are.
        ratios: r > 0 by the same names, [channel].

    Returns:
        a new model.

    Raises:
        ValueError: a ratio is not positive and finite, or a name is not the input of an attention or an MLP.
    """
    clip = sharing_copy(clip)
    left = set(shifts) | set(ratios)
    for name, block in clip.named_modules():
        if not isinstance(block, Block):
            continue
        attention, mlp = block.attention, block.mlp
        for site, norm, readers in (
            (f"{name}.attention.input", block.norm1, (attention.q, attention.k, attention.v)),
            (f"{name}.mlp.input", block.norm2, (mlp.fc1,)),
        ):
            if site in left:
                left.discard(site)
                shift = shifts.get(site, torch.zeros_like(norm.bias))
                _fold_norm(norm, readers, shift, ratios.get(site, torch.ones_like(norm.bias)))
    if left:
        raise ValueError(f"not the input of an attention or an MLP: {min(left)}")
    return clip


def centre_attention(clip: Clip, middles: dict[str, Tensor]) -> Clip:
    """Take a constant from all keys, or from all values, of an attention; it costs nothing at run time.

    softmax does not see what is added to all logits of a query (arXiv:2302.08626): b_k' = b_k − m. Probabilities add up
    to 1, so that what all values lose the output can regain: b_v' = b_v − m, b_out' = b_out + W_out m.

    Args:
        middles: m by tensor site (`image.blocks.0.attention.k_out`, `.v_out`), [channel].

    Returns:
        a new model.

    Raises:
        ValueError: a site is neither.
    """
    clip = sharing_copy(clip)
    for site, middle in middles.items():
        path, _, kind = site.rpartition(".")
        attention = clip.get_submodule(path)
        if not isinstance(attention, AttentionProducts) or kind not in ("k_out", "v_out"):
            raise ValueError(f"neither keys nor values of an attention: {site}")
        linear, out = attention.get_submodule(kind[0]), attention.get_submodule("out")
        assert isinstance(linear, nn.Linear)
        assert isinstance(out, nn.Linear)
        replace_parameter(linear, "bias", linear.bias - middle)
        if kind == "v_out":
            moved = out.weight.detach().cpu().double() @ middle.cpu().double()  # [out]; not every device has float64
            replace_parameter(out, "bias", (out.bias.detach().cpu().double() + moved).float().to(out.bias.device))
    return clip


def _fold_norm(norm: nn.LayerNorm, readers: tuple[nn.Linear, ...], shift: Tensor, ratio: Tensor) -> None:
    if not bool((ratio.isfinite() & (ratio > 0)).all()):
        raise ValueError(f"need ratios > 0, got {ratio.min():g}")
    for linear in readers:
        moved = linear.weight.detach().cpu().double() @ shift.cpu().double()  # [out]; not every device has float64
        bias = (linear.bias.detach().cpu().double() + moved).float().to(linear.bias.device)
        replace_parameter(linear, "bias", bias)
        replace_parameter(linear, "weight", linear.weight * ratio)
    replace_parameter(norm, "weight", norm.weight / ratio)
    replace_parameter(norm, "bias", (norm.bias - shift) / ratio)

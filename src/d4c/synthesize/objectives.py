"""What synthesis minimises: contrast with prompts and backgrounds, a network's own statistics, and smoothness."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL_WIDTH, GRID_POINTS, LEAST_DENSITY = 0.01, 10, 1e-4  # of the entropy of patch similarities


def semantic_injection(images: Tensor, texts: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Pull each image to its prompt and away from all others (PGSI, D4C arXiv:2511.15411).

        -(1/n) sum_i log [ exp(f_i t_{y_i} / τ) / sum_k exp(f_i t_k / τ) ]

    Args:
        images: f, unit rows [image, channel]; texts: t, unit rows [prompt, channel].
        targets: y, index of each image's prompt, [image].

    Returns:
        a scalar; ln(number of prompts) where all cosines are equal.
    """
    return F.cross_entropy(images @ texts.T / temperature, targets)


def structural_contrast(
    foregrounds: Tensor, backgrounds: Tensor, texts: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """Pull each foreground to its prompt, away from other prompts and from every background of the batch (SCG).

        -(1/n) sum_i log { exp(u_i t_{y_i} / τ) / [ sum_k exp(u_i t_k / τ) + sum_j exp(u_i b_j / τ) ] }

    Prompts and backgrounds share one softmax, and an image's own background is among the negatives.

    Args:
        foregrounds, backgrounds: u and b, unit rows [image, channel]; texts: t, unit rows [prompt, channel].
        targets: y, index of each image's prompt, [image].

    Returns:
        a scalar.
    """
    candidates = torch.cat([texts, backgrounds])  # [prompt + image, channel]
    return F.cross_entropy(foregrounds @ candidates.T / temperature, targets)


def total_variation(x: Tensor) -> Tensor:
    """Mean squared difference of neighbours, along rows plus along columns.

    Args:
        x: [image, channel, height, width].

    Returns:
        a scalar.
    """
    return x.diff(dim=3).square().mean() + x.diff(dim=2).square().mean()


def batchnorm_statistics(inputs: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    """Distance between the batch's statistics and those that BatchNorms remember (BNS of D4C's comparison).

        sum_l mean_c (μ_l - running_mean_l)^2 + mean_c (v_l - running_var_l)^2,    v biased

    DeepInversion takes norms instead of means and weighs the first layer more; this does neither.

    Args:
        inputs: what goes into each BatchNorm, [image, channel, height, width]; norms: in the same order.

    Returns:
        a scalar.
    """
    total = inputs[0].new_zeros(())
    for x, norm in zip(inputs, norms, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)  # [channel]
        total = total + (mean - norm.running_mean).square().mean() + (variance - norm.running_var).square().mean()
    return total


def attended_inputs(probabilities: Tensor, inputs: Tensor) -> Tensor:
    """Attention applied to the layer's own input, averaged over heads: what D4C's authors compare patches by.

    Args:
        probabilities: [image, head, query, key]; inputs: LayerNorm's output, [image, key, channel].

    Returns:
        [image, query, channel].
    """
    return probabilities.mean(dim=1) @ inputs


def attended_values(probabilities: Tensor, values: Tensor) -> Tensor:
    """Attention's own result, averaged over heads: what PSAQ-ViT (arXiv:2203.02250) compares patches by.

    Args:
        probabilities: [image, head, query, key]; values: [image, key, channel], heads side by side.

    Returns:
        [image, query, channel / head].
    """
    heads = probabilities.shape[1]
    b, t, c = values.shape
    values = values.reshape(b, t, heads, c // heads).transpose(1, 2)  # [image, head, key, channel / head]
    return (probabilities @ values).mean(dim=1)


def patch_similarity_entropy(context: Tensor) -> Tensor:
    """Entropy of the cosines between all pairs of patches, high where an image has things and a background (PSE).

    A Gaussian kernel density of width h = 0.01 over the P^2 cosines of each image, read at 10 points between the
    batch's smallest and largest cosine, gives p = density + 1e-4 and the entropy -∫ p log p by the trapezoid rule.
    The points carry no gradient; they lie ten widths apart, so that most cosines get none either, as in PSAQ-ViT.

    Args:
        context: [image, patch, channel].

    Returns:
        a scalar, the mean over images.
    """
    unit = F.normalize(context, dim=-1)
    cosines = (unit @ unit.transpose(1, 2)).flatten(1)  # [image, pair]
    with torch.no_grad():
        share = torch.linspace(0, 1, GRID_POINTS, device=cosines.device)
        points = cosines.min() + share * (cosines.max() - cosines.min())  # [point]
    steps = (points[:, None] - cosines[:, None, :]) / KERNEL_WIDTH  # [image, point, pair]
    kernels = torch.exp(-0.5 * steps.square()) / (KERNEL_WIDTH * math.sqrt(2 * math.pi))
    density = kernels.mean(dim=2) + LEAST_DENSITY  # [image, point]
    return torch.trapezoid(-density * density.log(), points, dim=1).mean()


def variation_norms(x: Tensor) -> Tensor:
    """Sum of the Euclidean norms of all differences to the right, below, and along both diagonals (PSAQ-ViT).

    Args:
        x: [image, channel, height, width].

    Returns:
        a scalar, growing with the root of the number of values.
    """
    differences = (
        x[:, :, :, :-1] - x[:, :, :, 1:],
        x[:, :, :-1, :] - x[:, :, 1:, :],
        x[:, :, :-1, :-1] - x[:, :, 1:, 1:],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
    )
    return torch.stack([d.norm() for d in differences]).sum()

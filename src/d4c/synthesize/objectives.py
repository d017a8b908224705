"""What synthesis minimises: contrast with prompts and backgrounds, and smoothness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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

"""Attention, MLP and the pre-norm residual block shared by every transformer tower."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4c.artifact.architecture import Activation
from d4c.models.sites import TensorSite


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation_module(name: Activation) -> nn.Module:
    """Return the named pointwise non-linearity."""
    if name == "quick_gelu":
        return QuickGELU()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, token, channel] -> [batch, head, token, channel / head]."""
    b, t, c = x.shape
    return x.reshape(b, t, heads, c // heads).transpose(1, 2)  # [batch, head, token, channel]


def merge_heads(x: Tensor) -> Tensor:
    """The inverse of `split_heads`."""
    b, h, t, c = x.shape
    return x.transpose(1, 2).reshape(b, t, h * c)  # [batch, token, channel]


class AttentionProducts(nn.Module):
    """The two products of attention, with a site on each of their four factors.

    context = softmax(q kᵀ / sqrt(channel) + mask) v, head by head.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_out = TensorSite()
        self.k_out = TensorSite()
        self.v_out = TensorSite()
        self.probabilities = TensorSite()

    def products(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            q: [batch, query, channel]; k and v: [batch, key, channel].
            mask: added to the logits, [query, key], or None.

        Returns:
            [batch, query, channel].
        """
        q = split_heads(self.q_out(q), self.heads)  # [batch, head, query, channel]
        k = split_heads(self.k_out(k), self.heads)  # [batch, head, key, channel]
        v = split_heads(self.v_out(v), self.heads)  # [batch, head, key, channel]
        logits = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]))  # [batch, head, query, key]
        if mask is not None:
            logits = logits + mask
        probabilities = self.probabilities(F.softmax(logits, dim=-1))
        return merge_heads(probabilities @ v)


class Attention(AttentionProducts):
    """Multi-head self-attention with q, k, v and out as separate linears."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(heads)
        self.input = TensorSite()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.context = TensorSite()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.input(x)
        return self.out(self.context(self.products(self.q(x), self.k(x), self.v(x), mask)))


class Mlp(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.input = TensorSite()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = activation_module(activation)
        self.hidden = TensorSite()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.hidden(self.activation(self.fc1(self.input(x)))))


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x += attention(norm1(x)); x += mlp(norm2(x)).

    `reads` names the tensor site in front of each layer.
    """

    reads: ClassVar[dict[str, str]] = {
        "attention.q": "attention.input",
        "attention.k": "attention.input",
        "attention.v": "attention.input",
        "attention.out": "attention.context",
        "mlp.fc1": "mlp.input",
        "mlp.fc2": "mlp.hidden",
    }

    def __init__(
        self, width: int, heads: int, hidden: int, activation: Activation, *, norm_eps: float, layer_scale: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads)
        self.scale1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden, activation)
        self.scale2 = LayerScale(width) if layer_scale else nn.Identity()

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The first half."""
        return x + self.scale1(self.attention(self.norm1(x), mask))

    def transform(self, x: Tensor) -> Tensor:
        """The second half."""
        return x + self.scale2(self.mlp(self.norm2(x)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.transform(self.attend(x, mask))


class ProbePool(AttentionProducts):
    """A learned probe attends to all tokens, and an MLP refines what it saw: y + mlp(norm(y)), y = attention(probe, x).

    `reads` names the tensor site in front of each layer. Source: the MAP head of SigLIP (arXiv:2303.15343) as
    Transformers and timm parametrise it.
    """

    reads: ClassVar[dict[str, str]] = {
        "q": "q_input",
        "k": "input",
        "v": "input",
        "out": "context",
        "mlp.fc1": "mlp.input",
        "mlp.fc2": "mlp.hidden",
    }

    def __init__(self, width: int, heads: int, hidden: int, activation: Activation, *, norm_eps: float) -> None:
        super().__init__(heads)
        self.probe = nn.Parameter(torch.empty(1, width).normal_(std=width**-0.5))
        self.input = TensorSite()
        self.q_input = TensorSite()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.context = TensorSite()
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, channel] -> [batch, channel]."""
        q = self.q(self.q_input(self.probe.expand(len(x), -1, -1)))  # [batch, 1, channel]
        x = self.input(x)
        y = self.out(self.context(self.products(q, self.k(x), self.v(x))[:, 0]))  # [batch, channel]
        return y + self.mlp(self.norm(y))

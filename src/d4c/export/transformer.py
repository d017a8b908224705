"""Residual blocks and attention as ONNX nodes; tokens of all samples lie in rows, [batch x token, channel]."""

from __future__ import annotations

import math

import numpy as np

from d4c.artifact.architecture import Activation
from d4c.export.layers import Layers


def write_block(
    layers: Layers, x: str, name: str, *, heads: int, heads_shape: str, mask: str | None, activation: Activation,
    epsilon: float,
) -> str:  # fmt: skip
    """A residual block: x += attention(norm1(x)); x += mlp(norm2(x)).

    Args:
        x: [batch x token, channel].
        heads_shape: value that reshapes x to [batch, token, head, channel / head].
        mask: value added to attention's logits, [query, key], or None.
    """
    graph, attention = layers.graph, f"{name}.attention"
    y = layers.quantize(layers.norm(x, f"{name}.norm1", epsilon), f"{attention}.input")
    q, k, v = (layers.linear(y, f"{attention}.{part}") for part in "qkv")
    context = write_products(layers, (q, k, v), attention, heads, (heads_shape, heads_shape), mask)
    y_attention = layers.linear(layers.quantize(context, f"{attention}.context"), f"{attention}.out")
    x = graph.op("Add", [x, _scaled(layers, y_attention, f"{name}.scale1")], f"{name}.sum1")
    y_mlp = write_mlp(layers, layers.norm(x, f"{name}.norm2", epsilon), f"{name}.mlp", activation)
    return graph.op("Add", [x, _scaled(layers, y_mlp, f"{name}.scale2")], f"{name}.sum2")


def write_products(
    layers: Layers, qkv: tuple[str, str, str], name: str, heads: int, shapes: tuple[str, str], mask: str | None
) -> str:
    """The products of attention: softmax(q kᵀ / sqrt(channel) + mask) v, head by head.

    Args:
        qkv: [batch x query, channel], and two of [batch x key, channel].
        shapes: values that split queries, and keys, to [batch, token, head, channel / head].

    Returns:
        [batch x query, channel].
    """
    graph = layers.graph
    width = len(layers.parameter(f"{name}.q.weight"))
    q, k, v = (layers.quantize(x, f"{name}.{part}_out").name for x, part in zip(qkv, "qkv", strict=True))
    split = {"q": (q, shapes[0], [0, 2, 1, 3]), "k": (k, shapes[1], [0, 2, 3, 1]), "v": (v, shapes[1], [0, 2, 1, 3])}
    for part, (x, shape, order) in split.items():
        y = graph.op("Reshape", [x, shape], f"{name}.{part}_tokens")  # [batch, token, head, channel]
        split[part] = (graph.op("Transpose", [y], f"{name}.{part}_heads", perm=order), shape, order)
    # keys are [batch, head, channel, key]
    logits = graph.op("MatMul", [split["q"][0], split["k"][0]], f"{name}.logits")  # [batch, head, query, key]
    factor = graph.constant(f"{name}.factor", np.asarray(1 / math.sqrt(width // heads), np.float32))
    logits = graph.op("Mul", [logits, factor], f"{name}.scaled_logits")
    if mask is not None:
        logits = graph.op("Add", [logits, mask], f"{name}.masked_logits")
    probabilities = graph.op("Softmax", [logits], f"{name}.softmax", axis=-1)
    probabilities = layers.quantize(probabilities, f"{name}.probabilities").name
    context = graph.op("MatMul", [probabilities, split["v"][0]], f"{name}.context_heads")
    context = graph.op("Transpose", [context], f"{name}.context_tokens", perm=[0, 2, 1, 3])
    rows = graph.shape(f"rows_{width}", [-1, width])
    return graph.op("Reshape", [context, rows], f"{name}.context_rows")  # [batch x query, channel]


def write_mlp(layers: Layers, x: str, name: str, activation: Activation) -> str:
    """fc2(activation(fc1(x))); x: [row, channel]."""
    hidden = layers.linear(layers.quantize(x, f"{name}.input"), f"{name}.fc1")
    hidden = _activation(layers, hidden, f"{name}.activation", activation)
    return layers.linear(layers.quantize(hidden, f"{name}.hidden"), f"{name}.fc2")


def _activation(layers: Layers, x: str, name: str, activation: Activation) -> str:
    graph = layers.graph
    if activation != "quick_gelu":
        return graph.op("Gelu", [x], name, approximate="tanh" if activation == "gelu_tanh" else "none")
    factor = graph.constant("quick_gelu_factor", np.asarray(1.702, np.float32))
    gate = graph.op("Sigmoid", [graph.op("Mul", [x, factor], f"{name}.scaled")], f"{name}.gate")
    return graph.op("Mul", [x, gate], name)


def _scaled(layers: Layers, x: str, name: str) -> str:
    """LayerScale, where the block has one."""
    if not layers.has(f"{name}.gamma"):
        return x
    return layers.graph.op("Mul", [x, layers.constant(f"{name}.gamma")], name)

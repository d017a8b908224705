"""The text tower as ONNX nodes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from d4c.artifact.architecture import TextConfig
from d4c.export.layers import Layers
from d4c.export.transformer import write_block

# Added to logits of what a token must not see; exp of it is 0 in float32, and unlike -inf it stays finite in any sum.
MASKED = -1e9


def length_is_fixed(config: TextConfig) -> bool:
    """Whether padding changes the embedding, so that texts must be as long as the model was trained with."""
    return not config.causal or config.pooling == "last"


def write_text(layers: Layers, config: TextConfig, ids: str) -> str:
    """[batch, token] -> [batch, embedding]."""
    graph, width, heads = layers.graph, config.width, config.heads
    length = graph.op("Shape", [ids], "text.length", start=1, end=2)  # [1]
    x = layers.embedding(ids, "text.token_embedding")
    zero, axis = graph.shape("text.zero", [0]), graph.shape("text.first_axis", [0])
    position = layers.constant("text.position_embedding")
    position = graph.op("Slice", [position, zero, length, axis], "text.positions")  # [token, channel]
    x = graph.op("Add", [x, position], "text.placed")
    x = graph.op("Reshape", [x, graph.shape(f"rows_{width}", [-1, width])], "text.rows")
    sizes = [graph.shape("text.any", [-1]), length, graph.shape("text.head_sizes", [heads, width // heads])]
    heads_shape = graph.op("Concat", sizes, "text.heads_shape", axis=0)
    mask = _causal_mask(layers, length) if config.causal else None
    for i in range(config.layers):
        x = write_block(
            layers, x, f"text.blocks.{i}", heads=heads, heads_shape=heads_shape, mask=mask,
            activation=config.activation, epsilon=config.norm_eps,
        )  # fmt: skip
    shape = graph.op("Concat", [sizes[0], length, graph.shape("text.width", [width])], "text.tokens_shape", axis=0)
    x = _pooled_token(layers, config, graph.op("Reshape", [x, shape], "text.last_tokens"), ids)
    x = layers.norm(x, "text.norm_final", config.norm_eps)
    return layers.linear(layers.quantize(x, "text.pooled"), "text.projection")


def _causal_mask(layers: Layers, length: str) -> str:
    """[query, key], as long as the texts."""
    graph = layers.graph
    size = graph.op("Concat", [length, length], "text.mask_size", axis=0)
    masked = helper.make_tensor("masked", TensorProto.FLOAT, [1], [MASKED])
    whole = graph.op("ConstantOfShape", [size], "text.everything_masked", value=masked)
    return graph.op("Trilu", [whole, graph.constant("text.diagonal", np.asarray(1, np.int64))], "text.mask", upper=1)


def _pooled_token(layers: Layers, config: TextConfig, x: str, ids: str) -> str:
    """[batch, token, channel] -> [batch, channel]; the end of a text is its first highest id."""
    graph = layers.graph
    if config.pooling == "end_of_text":
        end = graph.op("ArgMax", [ids], "text.end", axis=1, keepdims=1)  # [batch, 1]
        return graph.op("GatherND", [x, end], "text.end_token", batch_dims=1)
    index = np.asarray(-1 if config.pooling == "last" else 0, np.int64)
    return graph.op("Gather", [x, graph.constant("text.pooled_index", index)], "text.pooled_token", axis=1)

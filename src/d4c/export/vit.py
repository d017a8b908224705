"""The ViT image tower as ONNX nodes."""

from __future__ import annotations

import numpy as np

from d4c.artifact.architecture import VisionTransformerConfig
from d4c.export.layers import Layers
from d4c.export.transformer import write_block, write_mlp, write_products


def write_vit(layers: Layers, config: VisionTransformerConfig, pixels: str) -> str:
    """[batch, 3, size, size] -> [batch, embedding]."""
    graph, width, heads = layers.graph, config.width, config.heads
    x = _embed(layers, config, pixels)
    heads_shape = graph.shape("image.heads_shape", [-1, config.num_tokens, heads, width // heads])
    for i in range(config.layers):
        x = write_block(
            layers, x, f"image.blocks.{i}", heads=heads, heads_shape=heads_shape, mask=None,
            activation=config.activation, epsilon=config.norm_eps,
        )  # fmt: skip
    x = _pool(layers, config, x)
    if not config.projection:
        return x
    return layers.linear(layers.quantize(x, "image.pooled"), "image.projection")


def _embed(layers: Layers, config: VisionTransformerConfig, pixels: str) -> str:
    """[batch, 3, size, size] -> [batch x token, channel].

    The patch embedding is written as a product, since runtimes compute a convolution in integers only where an integer
    tensor follows it. Columns are in the order (height, width, channel).
    """
    graph, width, patch = layers.graph, config.width, config.patch_size
    side = config.image_size // patch
    if config.image_size % patch:
        bounds = [graph.shape(f"image.crop_{k}", v) for k, v in (("from", [0, 0]), ("to", [side * patch] * 2))]
        pixels = graph.op("Slice", [pixels, *bounds, graph.shape("image.crop_axes", [2, 3])], "image.cropped")
    x = graph.op("Transpose", [pixels], "image.channels_last", perm=[0, 2, 3, 1])
    shape = graph.shape("image.patches_shape", [-1, side, patch, side, patch * 3])
    x = graph.op("Reshape", [x, shape], "image.patches")
    x = graph.op("Transpose", [x], "image.patches_in_order", perm=[0, 1, 3, 2, 4])
    x = graph.op("Reshape", [x, graph.shape("image.patch_rows_shape", [-1, patch * patch * 3])], "image.patch_rows")
    weight = layers.parameter("image.patch_embedding.weight")  # [out, 3, height, width]
    weight = np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(width, -1)  # [out, in]
    x = layers.linear(layers.quantize(x, "image.pixels"), "image.patch_embedding", weight)
    x = graph.op("Reshape", [x, graph.shape("image.tokens_shape", [-1, side * side, width])], "image.tokens")
    position = layers.parameter("image.position_embedding").astype(np.float32)  # [token, channel]
    if config.class_token:
        first = layers.parameter("image.class_embedding").astype(np.float32) + position[:1]  # [1, channel]
        first_name = graph.constant("image.class_token", first[None])
        batch = graph.op("Shape", [x], "image.batch", start=0, end=1)
        repeats = graph.op("Concat", [batch, graph.shape("image.once", [1, 1])], "image.class_repeats", axis=0)
        class_tokens = graph.op("Expand", [first_name, repeats], "image.class_tokens")
        position = position[1:]
    x = graph.op("Add", [x, graph.constant("image.position_embedding", position)], "image.placed")
    if config.class_token:
        x = graph.op("Concat", [class_tokens, x], "image.all_tokens", axis=1)
    if config.pre_norm:
        x = layers.norm(x, "image.norm_pre", config.norm_eps)
    return graph.op("Reshape", [x, graph.shape(f"rows_{width}", [-1, width])], "image.rows")


def _pool(layers: Layers, config: VisionTransformerConfig, x: str) -> str:
    """[batch x token, channel] -> [batch, channel], normalised before or after."""
    graph = layers.graph
    before = not config.norm_after_pooling and config.pooling != "class"  # of one token it is the same
    if before:
        x = layers.norm(x, "image.norm_post", config.norm_eps)
    if config.pooling == "attention":
        x = _probe_pool(layers, config, x)
    else:
        shape = graph.shape("image.pool_shape", [-1, config.num_tokens, config.width])
        x = graph.op("Reshape", [x, shape], "image.last_tokens")  # [batch, token, channel]
        if config.pooling == "class":
            x = graph.op("Gather", [x, graph.constant("first", np.asarray(0, np.int64))], "image.class_out", axis=1)
        else:
            x = _mean_token(layers, config, x)
    return x if before else layers.norm(x, "image.norm_post", config.norm_eps)


def _mean_token(layers: Layers, config: VisionTransformerConfig, x: str) -> str:
    """Mean of the patch tokens; [batch, token, channel] -> [batch, channel]."""
    graph = layers.graph
    if config.class_token:
        bounds = [graph.shape(f"image.patches_{k}", [v]) for k, v in (("from", 1), ("to", config.num_tokens))]
        x = graph.op("Slice", [x, *bounds, graph.shape("image.token_axis", [1])], "image.patch_tokens")
    return graph.op("ReduceMean", [x, graph.shape("token_axis", [1])], "image.mean_token", keepdims=0)


def _probe_pool(layers: Layers, config: VisionTransformerConfig, x: str) -> str:
    """A learned probe attends to all tokens, and an MLP refines what it saw; -> [batch, channel]."""
    graph, width, heads, name = layers.graph, config.width, config.heads, "image.pool"
    q = layers.linear(layers.quantize(layers.constant(f"{name}.probe"), f"{name}.q_input"), f"{name}.q")
    y = layers.quantize(x, f"{name}.input")
    k, v = (layers.linear(y, f"{name}.{part}") for part in "kv")
    shapes = tuple(
        graph.shape(f"{name}.{part}_shape", [-1, tokens, heads, width // heads])
        for part, tokens in (("query", 1), ("key", config.num_tokens))
    )
    context = write_products(layers, (q, k, v), name, heads, (shapes[0], shapes[1]), None)
    y_out = layers.linear(layers.quantize(context, f"{name}.context"), f"{name}.out")
    refined = write_mlp(layers, layers.norm(y_out, f"{name}.norm", config.norm_eps), f"{name}.mlp", config.activation)
    return graph.op("Add", [y_out, refined], f"{name}.sum")

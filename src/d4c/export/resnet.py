"""The ModifiedResNet image tower as ONNX nodes: integers from the pixels to the attention pool."""

from __future__ import annotations

import numpy as np

from d4c.artifact.architecture import ResNetConfig
from d4c.export.layers import Layers, Value
from d4c.export.transformer import write_products


def write_resnet(layers: Layers, config: ResNetConfig, pixels: str) -> str:
    """[batch, 3, size, size] -> [batch, embedding]; BatchNorms are folded already."""
    x = _stem(layers, layers.quantize(pixels, "image.pixels"))
    for stage, depth in enumerate(config.layers):
        for i in range(depth):
            x = _bottleneck(layers, x, f"image.layer{stage + 1}.{i}", stride=2 if stage > 0 and i == 0 else 1)
    return _attention_pool(layers, config, x)


def _stem(layers: Layers, x: Value) -> Value:
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = _relu_convolution(layers, x, f"image.stem.conv{i}", stride=stride, padding=1)
    return _average_pool(layers, x, "image.stem.pool_out", 2, len(layers.parameter("image.stem.conv3.weight")))


def _bottleneck(layers: Layers, x: Value, name: str, *, stride: int) -> Value:
    """relu(conv3(pool(relu(conv2(relu(conv1(x)))))) + shortcut(x)); strides are average pools."""
    graph = layers.graph
    y = _relu_convolution(layers, x, f"{name}.conv1", padding=0)
    y = _relu_convolution(layers, y, f"{name}.conv2", padding=1)
    if stride > 1:
        y = _average_pool(layers, y, f"{name}.pool_out", stride, len(layers.parameter(f"{name}.conv2.weight")))
    y = layers.quantize(layers.convolution(y, f"{name}.conv3", stride=1, padding=0), f"{name}.conv3_out")
    if layers.has(f"{name}.shortcut.conv.weight"):
        if stride > 1:
            width = layers.parameter(f"{name}.shortcut.conv.weight").shape[1]
            x = _average_pool(layers, x, f"{name}.shortcut.pool_out", stride, width)
        x = layers.quantize(
            layers.convolution(x, f"{name}.shortcut.conv", stride=1, padding=0), f"{name}.shortcut.conv_out"
        )
    total = graph.op("Add", [y.name, x.name], f"{name}.sum")
    return layers.quantize(graph.op("Relu", [total], f"{name}.relu"), f"{name}.sum_out", after_relu=True)


def _relu_convolution(layers: Layers, x: Value, name: str, *, padding: int, stride: int = 1) -> Value:
    y = layers.graph.op("Relu", [layers.convolution(x, name, stride=stride, padding=padding)], f"{name}.relu")
    return layers.quantize(y, f"{name}_out", after_relu=True)


def _average_pool(layers: Layers, x: Value, site: str, size: int, channels: int) -> Value:
    """The mean of squares of `size` pixels.

    Codes are added by a convolution that takes each channel for itself: onnxruntime's own integer average pool goes
    through float value by value and takes a tenth of the time of a RN50.
    """
    if x.site is not None:
        return layers.quantize(layers.mean_convolution(x, f"{site}.average", size, channels), site)
    pooled = layers.graph.op(
        "AveragePool", [x.name], f"{site}.average", kernel_shape=[size, size], strides=[size, size]
    )
    return layers.quantize(pooled, site)


def _attention_pool(layers: Layers, config: ResNetConfig, x: Value) -> str:
    """The mean token looks at all tokens; [batch, channel, height, width] -> [batch, embedding]."""
    graph, width, heads, name = layers.graph, config.width * 32, config.heads, "image.pool"
    area = (config.image_size // 32) ** 2
    y = graph.op("Reshape", [x.name, graph.shape(f"{name}.map_shape", [-1, width, area])], f"{name}.map")
    y = graph.op("Transpose", [y], f"{name}.map_tokens", perm=[0, 2, 1])  # [batch, token, channel]
    # A product, not ReduceMean: OpenVINO computes that on u8 codes and rounds the mean to a code.
    share = graph.constant(f"{name}.share", np.full((1, 1, area), 1 / area, np.float32))
    mean = graph.op("MatMul", [share, y], f"{name}.mean_token")  # [batch, 1, channel]
    y = graph.op("Concat", [mean, y], f"{name}.all_tokens", axis=1)
    y = graph.op("Add", [y, layers.constant(f"{name}.position_embedding")], f"{name}.placed")
    first = [graph.shape(f"{name}.{key}", [value]) for key, value in (("from", 0), ("to", 1))]
    query = graph.op("Slice", [y, *first, graph.shape("token_axis", [1])], f"{name}.query")  # [batch, 1, channel]
    rows = graph.shape(f"rows_{width}", [-1, width])
    query = graph.op("Reshape", [query, rows], f"{name}.query_rows")  # [batch, channel]
    q = layers.linear(layers.quantize(query, f"{name}.q_input"), f"{name}.q")
    tokens = layers.quantize(graph.op("Reshape", [y, rows], f"{name}.rows"), f"{name}.input")
    k, v = (layers.linear(tokens, f"{name}.{part}") for part in "kv")
    query_shape = graph.shape(f"{name}.query_shape", [-1, 1, heads, width // heads])
    key_shape = graph.shape(f"{name}.key_shape", [-1, area + 1, heads, width // heads])
    context = write_products(layers, (q, k, v), name, heads, (query_shape, key_shape), None)
    return layers.linear(layers.quantize(context, f"{name}.context"), f"{name}.out")

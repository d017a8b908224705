"""Whole towers as ONNX models."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from d4c.artifact.architecture import ResNetConfig
from d4c.artifact.exported import Storage
from d4c.export.graph import Graph
from d4c.export.layers import Layers
from d4c.export.resnet import write_resnet
from d4c.export.source import Source
from d4c.export.text import length_is_fixed, write_text
from d4c.export.vit import write_vit

ID_TYPES = {"int32": TensorProto.INT32, "int64": TensorProto.INT64}


def image_graph(
    source: Source, *, storage: Storage, input: str = "pixel_values", output: str = "image_embeds",
    normalize: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """The image tower: [batch, 3, size, size] float32 in normalised space -> [batch, embedding]."""
    graph = Graph()
    embeds = _write_image(Layers(graph, source, storage), _pixels(graph, source, input))
    _finish(graph, source, embeds, output, normalize)
    return graph.model("image")


def text_graph(
    source: Source, *, storage: Storage, input: str = "input_ids", output: str = "text_embeds",
    normalize: bool = False, id_type: str = "int64",
) -> onnx.ModelProto:  # fmt: skip
    """The text tower: ids [batch, token] -> [batch, embedding]; any length up to the context, or all of it."""
    graph = Graph()
    embeds = write_text(Layers(graph, source, storage), source.config.text, _ids(graph, source, input, id_type))
    _finish(graph, source, embeds, output, normalize)
    return graph.model("text")


def combined_graph(source: Source, *, storage: Storage, id_type: str = "int64") -> onnx.ModelProto:
    """Both towers and their logits, under the names of Transformers' CLIPModel.

    The attention mask is taken and not read: padding does not change an embedding.
    """
    graph = Graph()
    ids = _ids(graph, source, "input_ids", id_type, batch="texts")
    pixels = _pixels(graph, source, "pixel_values", batch="images")
    graph.input("attention_mask", TensorProto.INT64, ["texts", _length(source)])
    layers = Layers(graph, source, storage)
    text, image = write_text(layers, source.config.text, ids), _write_image(layers, pixels)
    text, image = _normalized(graph, text, "text_embeds"), _normalized(graph, image, "image_embeds")
    turned = graph.op("Transpose", [text], "text_columns", perm=[1, 0])
    factor = graph.constant("logit_scale", np.asarray(source.logit_scale, np.float32))
    cosines = graph.op("MatMul", [image, turned], "cosines")  # [image, text]
    bias = source.logit_bias
    logits = graph.op("Mul", [cosines, factor], "logits_per_image" if bias is None else "scaled_cosines")
    if bias is not None:
        logits = graph.op("Add", [logits, graph.constant("logit_bias", np.asarray(bias, np.float32))],
                          "logits_per_image")  # fmt: skip
    graph.op("Transpose", [logits], "logits_per_text", perm=[1, 0])
    width = source.config.embed_dim
    graph.output("logits_per_image", ["images", "texts"])
    graph.output("logits_per_text", ["texts", "images"])
    graph.output("text_embeds", ["texts", width])
    graph.output("image_embeds", ["images", width])
    return graph.model("clip")


def text_length_is_fixed(source: Source) -> bool:
    """Whether every text must be padded to the context."""
    return length_is_fixed(source.config.text)


def _pixels(graph: Graph, source: Source, name: str, batch: str = "batch") -> str:
    size = source.config.image.image_size
    return graph.input(name, TensorProto.FLOAT, [batch, 3, size, size])


def _ids(graph: Graph, source: Source, name: str, id_type: str, batch: str = "batch") -> str:
    return graph.input(name, ID_TYPES[id_type], [batch, _length(source)])


def _length(source: Source) -> str | int:
    return source.config.text.context_length if text_length_is_fixed(source) else "length"


def _write_image(layers: Layers, pixels: str) -> str:
    config = layers.source.config.image
    if isinstance(config, ResNetConfig):
        return write_resnet(layers, config, pixels)
    return write_vit(layers, config, pixels)


def _finish(graph: Graph, source: Source, embeds: str, output: str, normalize: bool) -> None:
    if normalize:
        _normalized(graph, embeds, output)
    else:
        graph.op("Identity", [embeds], output)
    graph.output(output, ["batch", source.config.embed_dim])


def _normalized(graph: Graph, x: str, name: str) -> str:
    """Each row divided by its length, or by 1e-12 where it is shorter."""
    length = graph.op("ReduceL2", [x, graph.shape(f"{name}_axes", [-1])], f"{name}_length", keepdims=1)
    least = graph.constant(f"{name}_least", np.asarray(1e-12, np.float32))
    return graph.op("Div", [x, graph.op("Max", [length, least], f"{name}_divisor")], name)

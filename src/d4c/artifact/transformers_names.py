"""One table between the parameter names of Transformers' CLIPModel and SiglipModel and the canonical ones."""

from __future__ import annotations

from collections.abc import Iterator

from d4c.artifact.architecture import ClipConfig, ResNetConfig, VisionTransformerConfig
from d4c.artifact.open_clip_names import Entry


def transformers_name_table(config: ClipConfig) -> list[Entry]:
    """Every parameter of a model, in the canonical order; SigLIP where images are pooled by attention.

    Raises:
        ValueError: a ModifiedResNet, which Transformers does not have.
    """
    if isinstance(config.image, ResNetConfig):
        raise ValueError("Transformers has no ModifiedResNet CLIP")
    siglip = config.image.pooling == "attention"
    image, text = _image(config.image), _text(config)
    scalars = ("logit_scale", "logit_bias") if siglip else ("logit_scale",)
    return [*image, *text, *(Entry(name, (name,), batched=siglip) for name in scalars)]


def _image(vit: VisionTransformerConfig) -> Iterator[Entry]:
    theirs = "vision_model.embeddings"
    if vit.class_token:
        yield Entry(f"{theirs}.class_embedding", ("image.class_embedding",))
    yield Entry(f"{theirs}.position_embedding.weight", ("image.position_embedding",))
    yield Entry(f"{theirs}.patch_embedding.weight", ("image.patch_embedding.weight",))
    if vit.patch_bias:
        yield Entry(f"{theirs}.patch_embedding.bias", ("image.patch_embedding.bias",))
    if vit.pre_norm:
        yield from _both("vision_model.pre_layrnorm", "image.norm_pre")  # sic
    for i in range(vit.layers):
        yield from _block(f"vision_model.encoder.layers.{i}", f"image.blocks.{i}")
    yield from _both("vision_model.post_layernorm", "image.norm_post")
    if vit.pooling == "attention":
        yield from _pool("vision_model.head", "image.pool")
    if vit.projection:
        yield Entry("visual_projection.weight", ("image.projection.weight",))


def _pool(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.probe", (f"{ours}.probe",), batched=True)
    for kind in ("weight", "bias"):
        parts = tuple(f"{ours}.{letter}.{kind}" for letter in "qkv")
        yield Entry(f"{theirs}.attention.in_proj_{kind}", parts)
    for name, canonical in (("attention.out_proj", "out"), ("layernorm", "norm"), ("mlp.fc1", "mlp.fc1"),
                            ("mlp.fc2", "mlp.fc2")):  # fmt: skip
        yield from _both(f"{theirs}.{name}", f"{ours}.{canonical}")


def _text(config: ClipConfig) -> Iterator[Entry]:
    yield Entry("text_model.embeddings.token_embedding.weight", ("text.token_embedding.weight",))
    yield Entry("text_model.embeddings.position_embedding.weight", ("text.position_embedding",))
    for i in range(config.text.layers):
        yield from _block(f"text_model.encoder.layers.{i}", f"text.blocks.{i}")
    yield from _both("text_model.final_layer_norm", "text.norm_final")
    if config.text.projection_bias:
        yield from _both("text_model.head", "text.projection")
    else:
        yield Entry("text_projection.weight", ("text.projection.weight",))


def _block(theirs: str, ours: str) -> Iterator[Entry]:
    yield from _both(f"{theirs}.layer_norm1", f"{ours}.norm1")
    for letter in "qkv":
        yield from _both(f"{theirs}.self_attn.{letter}_proj", f"{ours}.attention.{letter}")
    yield from _both(f"{theirs}.self_attn.out_proj", f"{ours}.attention.out")
    yield from _both(f"{theirs}.layer_norm2", f"{ours}.norm2")
    yield from _both(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1")
    yield from _both(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2")


def _both(theirs: str, ours: str) -> Iterator[Entry]:
    for kind in ("weight", "bias"):
        yield Entry(f"{theirs}.{kind}", (f"{ours}.{kind}",))

"""One table between open_clip's parameter names and the canonical ones, read in both directions.

`models.from_open_clip` reads it towards ours; `to_open_clip` and `open_clip_model_cfg` write what open_clip loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.artifact.architecture import ClipConfig, ResNetConfig, TextConfig, VisionTransformerConfig


@dataclass(frozen=True, slots=True)
class Entry:
    """One of another library's parameters.

    Args:
        theirs: its name there.
        ours: the canonical name, or three of them where it is split into equal parts along axis 0.
        transposed: whether the canonical form is its transpose.
        batched: whether it has one more axis, of length 1, in front.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    batched: bool = False


def name_table(config: ClipConfig, text_prefix: str = "") -> list[Entry]:
    """Every parameter of a model, in the canonical order.

    Args:
        text_prefix: "text." where open_clip keeps the text tower in a module of its own (CustomTextCLIP).
    """
    if isinstance(config.image, ResNetConfig):
        image = _resnet(config.image)
    else:
        image = _timm_vit(config.image) if config.image.pooling == "attention" else _vit(config.image)
    return [*image, *_text(config, text_prefix), Entry("logit_scale", ("logit_scale",))]


def to_open_clip(config: ClipConfig, state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Canonical parameters under open_clip's names and in its layout.

    Raises:
        KeyError: a parameter of the table is missing in `state`.
    """
    return renamed_arrays(name_table(config), state)


def renamed_arrays(table: Iterable[Entry], state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Canonical parameters in another library's names and layout.

    Raises:
        KeyError: a parameter of the table is missing in `state`.
    """
    theirs = {}
    for entry in table:
        array = np.concatenate([state[name] for name in entry.ours]) if len(entry.ours) > 1 else state[entry.ours[0]]
        array = array.T.copy() if entry.transposed else array
        theirs[entry.theirs] = array[None] if entry.batched else array
    return theirs


def open_clip_model_cfg(config: ClipConfig) -> dict[str, Any]:
    """`model_cfg` of an open_clip_config.json; options that stand at open_clip's default are left out.

    Raises:
        ValueError: what open_clip's own towers do not have, SigLIP's pooling above all, which it takes from timm.
    """
    image, text = config.image, config.text
    quick = text.activation == "quick_gelu"
    if isinstance(image, ResNetConfig):
        vision: dict[str, Any] = {"layers": list(image.layers), "head_width": image.width * 32 // image.heads}
    else:
        if image.pooling == "attention":
            raise ValueError("open_clip has attention pooling in timm's named models alone")
        if not image.class_token or image.patch_bias or not image.projection:
            raise ValueError("open_clip's image towers have a class token, a projection and patches without bias")
        if (image.activation == "quick_gelu") != quick:
            raise ValueError("open_clip has QuickGELU in both towers or in none")
        vision = {"layers": image.layers, "patch_size": image.patch_size, "head_width": image.width // image.heads}
        vision |= {"mlp_ratio": image.mlp_width / image.width, **_options(image)}
        if not image.pre_norm:
            vision["no_ln_pre"] = True
        if image.pooling == "mean":
            vision["pool_type"] = "avg"
        if image.norm_after_pooling:
            vision["final_ln_after_pool"] = True
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": quick,
        "vision_cfg": {"image_size": image.image_size, "width": image.width, **vision},
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": text.mlp_width / text.width,
            **_options(text),
            **({} if text.causal else {"no_causal_mask": True}),
            **({} if text.pooling == "end_of_text" else {"pool_type": text.pooling}),
            **({"proj_bias": True} if text.projection_bias else {}),
        },
    }


def _options(tower: VisionTransformerConfig | TextConfig) -> dict[str, Any]:
    """What both kinds of towers may have beside the usual."""
    options: dict[str, Any] = {}
    if tower.activation == "gelu_tanh":
        options["act_kwargs"] = {"approximate": "tanh"}
    if tower.norm_eps != 1e-5:
        options["norm_kwargs"] = {"eps": tower.norm_eps}
    if tower.layer_scale:
        options["ls_init_value"] = 1e-5  # only whether there is one matters: values are loaded
    return options


def _vit(vit: VisionTransformerConfig) -> Iterator[Entry]:
    yield Entry("visual.class_embedding", ("image.class_embedding",))
    yield Entry("visual.positional_embedding", ("image.position_embedding",))
    yield Entry("visual.conv1.weight", ("image.patch_embedding.weight",))
    if vit.pre_norm:
        yield from _both("visual.ln_pre", "image.norm_pre")
    for i in range(vit.layers):
        yield from _block(f"visual.transformer.resblocks.{i}", f"image.blocks.{i}", vit.layer_scale)
    yield from _both("visual.ln_post", "image.norm_post")
    yield Entry("visual.proj", ("image.projection.weight",), transposed=True)


def _timm_vit(vit: VisionTransformerConfig) -> Iterator[Entry]:
    """SigLIP's image tower, which open_clip takes from timm."""
    yield Entry("visual.trunk.pos_embed", ("image.position_embedding",), batched=True)
    yield from _both("visual.trunk.patch_embed.proj", "image.patch_embedding")
    for i in range(vit.layers):
        theirs, ours = f"visual.trunk.blocks.{i}", f"image.blocks.{i}"
        yield from _both(f"{theirs}.norm1", f"{ours}.norm1")
        yield from _stacked(f"{theirs}.attn.qkv.", f"{ours}.attention", "qkv")
        yield from _both(f"{theirs}.attn.proj", f"{ours}.attention.out")
        yield from _both(f"{theirs}.norm2", f"{ours}.norm2")
        yield from _both(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1")
        yield from _both(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2")
    yield from _both("visual.trunk.norm", "image.norm_post")
    yield Entry("visual.trunk.attn_pool.latent", ("image.pool.probe",), batched=True)
    yield from _both("visual.trunk.attn_pool.q", "image.pool.q")
    yield from _stacked("visual.trunk.attn_pool.kv.", "image.pool", "kv")
    for theirs, ours in (("proj", "out"), ("norm", "norm"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
        yield from _both(f"visual.trunk.attn_pool.{theirs}", f"image.pool.{ours}")


def _resnet(config: ResNetConfig) -> Iterator[Entry]:
    for i in (1, 2, 3):
        yield Entry(f"visual.conv{i}.weight", (f"image.stem.conv{i}.weight",))
        yield from _batch_norm(f"visual.bn{i}", f"image.stem.bn{i}")
    for stage, depth in enumerate(config.layers, start=1):
        for block in range(depth):
            theirs, ours = f"visual.layer{stage}.{block}", f"image.layer{stage}.{block}"
            for i in (1, 2, 3):
                yield Entry(f"{theirs}.conv{i}.weight", (f"{ours}.conv{i}.weight",))
                yield from _batch_norm(f"{theirs}.bn{i}", f"{ours}.bn{i}")
            if block == 0:
                yield Entry(f"{theirs}.downsample.0.weight", (f"{ours}.shortcut.conv.weight",))
                yield from _batch_norm(f"{theirs}.downsample.1", f"{ours}.shortcut.bn")
    yield Entry("visual.attnpool.positional_embedding", ("image.pool.position_embedding",))
    for theirs, ours in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("c_proj", "out")):
        yield from _both(f"visual.attnpool.{theirs}", f"image.pool.{ours}")


def _text(config: ClipConfig, prefix: str) -> Iterator[Entry]:
    yield Entry(f"{prefix}token_embedding.weight", ("text.token_embedding.weight",))
    yield Entry(f"{prefix}positional_embedding", ("text.position_embedding",))
    for i in range(config.text.layers):
        yield from _block(f"{prefix}transformer.resblocks.{i}", f"text.blocks.{i}", config.text.layer_scale)
    yield from _both(f"{prefix}ln_final", "text.norm_final")
    if config.text.projection_bias:
        yield from _both(f"{prefix}text_projection", "text.projection")
    else:
        yield Entry(f"{prefix}text_projection", ("text.projection.weight",), transposed=True)


def _block(theirs: str, ours: str, layer_scale: bool) -> Iterator[Entry]:
    yield from _both(f"{theirs}.ln_1", f"{ours}.norm1")
    yield from _stacked(f"{theirs}.attn.in_proj_", f"{ours}.attention", "qkv")
    yield from _both(f"{theirs}.attn.out_proj", f"{ours}.attention.out")
    yield from _both(f"{theirs}.ln_2", f"{ours}.norm2")
    yield from _both(f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc1")
    yield from _both(f"{theirs}.mlp.c_proj", f"{ours}.mlp.fc2")
    if layer_scale:
        for i in (1, 2):
            yield Entry(f"{theirs}.ls_{i}.gamma", (f"{ours}.scale{i}.gamma",))


def _stacked(theirs: str, ours: str, letters: str) -> Iterator[Entry]:
    """One linear of theirs that stands for several of ours."""
    for kind in ("weight", "bias"):
        yield Entry(f"{theirs}{kind}", tuple(f"{ours}.{letter}.{kind}" for letter in letters))


def _both(theirs: str, ours: str) -> Iterator[Entry]:
    for kind in ("weight", "bias"):
        yield Entry(f"{theirs}.{kind}", (f"{ours}.{kind}",))


def _batch_norm(theirs: str, ours: str) -> Iterator[Entry]:
    for kind in ("weight", "bias", "running_mean", "running_var"):
        yield Entry(f"{theirs}.{kind}", (f"{ours}.{kind}",))

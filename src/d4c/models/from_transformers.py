"""Folders in Transformers' layout: `CLIPModel` and `SiglipModel` (SigLIP, and SigLIP 2 of fixed resolution)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from d4c.artifact.architecture import Activation, ClipConfig, TextConfig, VisionTransformerConfig
from d4c.artifact.transformers_names import transformers_name_table
from d4c.errors import ModelFileError, UnsupportedModelError
from d4c.inputs import Preprocess, Tokenizer
from d4c.inputs.tokenizer_files import read_tokenizer, read_tokenizer_config
from d4c.models.clip import Clip, clip_from_state
from d4c.models.renaming import renamed_parameters
from d4c.models.weight_files import read_tensors

INDEX = "model.safetensors.index.json"
WEIGHT_FILES = ("model.safetensors", INDEX, "pytorch_model.bin")
OTHER_FILES = ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", "spiece.model", "vocab.json",
               "merges.txt")  # fmt: skip

# What Transformers' configuration classes assume where a file is silent.
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SMALL = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
_IMAGES = {**_BASE, "image_size": 224, "num_channels": 3, "vision_use_head": True}
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "text_config": {**_SMALL, **_CLIP, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
        "vision_config": {**_IMAGES, **_CLIP, "patch_size": 32},
    },
    "siglip": {
        "text_config": {**_BASE, **_SIGLIP, "vocab_size": 32000, "max_position_embeddings": 64},
        "vision_config": {**_IMAGES, **_SIGLIP, "patch_size": 16},
    },
}
_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def load_folder(folder: Path, source: str) -> Clip:
    """Load `config.json`, weights, tokenizer and `preprocessor_config.json`.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: a model or an option that the canonical towers do not cover.
    """
    config = read_config(folder, source)
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise ModelFileError(f"{folder}: no weights; expected one of {', '.join(WEIGHT_FILES)}")
    pictures = _read_json(folder / "preprocessor_config.json")
    preprocess = preprocess_from_transformers(pictures, config.image.image_size, source)
    tokenizer = _tokenizer(folder, config)
    theirs: dict[str, Tensor] = {}
    for path in [folder / name for name in shard_names(folder)] if weights.name == INDEX else [weights]:
        theirs |= read_tensors(path)
    state = renamed_parameters(theirs, transformers_name_table(config), source, ("position_ids",))
    return clip_from_state(config, state, tokenizer=tokenizer, preprocess=preprocess, source=source)


def read_config(folder: Path, source: str) -> ClipConfig:
    """Read `config.json` alone; raises as `load_folder` does."""
    return config_from_transformers(_read_json(folder / "config.json"), source)


def shard_names(folder: Path) -> list[str]:
    """The files that weights are divided over, where they are.

    Raises:
        ModelFileError: the index is broken.
    """
    if not (folder / INDEX).is_file():
        return []
    try:
        return sorted({Path(name).name for name in _read_json(folder / INDEX)["weight_map"].values()})
    except (KeyError, AttributeError, TypeError) as error:
        raise ModelFileError(f"{folder}: {INDEX} names no weight files") from error


def config_from_transformers(settings: dict[str, Any], source: str) -> ClipConfig:
    """Translate `config.json`.

    Raises:
        UnsupportedModelError: another model than CLIP and SigLIP, or an option the canonical towers do not have.
        ModelFileError: it makes no sense.
    """
    kind = settings.get("model_type")
    if kind not in _DEFAULTS:
        naflex = " (NaFlex, whose pictures keep their shape)" if kind == "siglip2" else ""
        raise UnsupportedModelError(f"{source}: model_type = {kind}{naflex} is not supported; known: clip, siglip")
    try:
        sections = {
            name: {**defaults, **(settings.get(name) or {}), **(settings.get(f"{name}_dict") or {})}
            for name, defaults in _DEFAULTS[kind].items()
        }
        text, vision = sections["text_config"], sections["vision_config"]
        if vision["num_channels"] != 3 or not vision["vision_use_head"]:
            given = f"num_channels = {vision['num_channels']}, vision_use_head = {vision['vision_use_head']}"
            raise UnsupportedModelError(f"{source}: {given} is not supported")
        if kind == "clip":
            _check_end(text, source)
            embed_dim = settings.get("projection_dim", 512)
        else:
            embed_dim = text.get("projection_size") or text["hidden_size"]
        return ClipConfig(embed_dim, _image_config(vision, kind, source), _text_config(text, kind, source))
    except UnsupportedModelError:
        raise
    except ValueError as error:
        raise UnsupportedModelError(f"{source}: {error}") from error
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ModelFileError(f"{source}: config.json makes no sense: {type(error).__name__}: {error}") from error


def preprocess_from_transformers(settings: dict[str, Any], size: int, source: str) -> Preprocess:
    """Translate `preprocessor_config.json`; what it does not say is CLIP's.

    Where an odd number of columns or rows is cropped, ours may lie one pixel beside Transformers'.

    Raises:
        UnsupportedModelError: it prepares pictures in another way, or in another size than the model's.
    """
    for option, expected in (("do_resize", True), ("do_rescale", True), ("do_normalize", True)):
        if settings.get(option, expected) is not expected:
            raise UnsupportedModelError(f"{source}: preprocessor option {option} = {settings[option]} is not supported")
    factor = settings.get("rescale_factor", 1 / 255)
    if not isinstance(factor, (int, float)) or abs(factor - 1 / 255) > 1e-6:
        raise UnsupportedModelError(f"{source}: preprocessor option rescale_factor is not 1/255")
    interpolation = _RESAMPLING.get(settings.get("resample", 3))
    if interpolation is None:
        raise UnsupportedModelError(f"{source}: preprocessor option resample = {settings['resample']} is not supported")
    given = _side(settings.get("size", size), ("shortest_edge",))
    if given is not None and settings.get("do_center_crop", True):
        crop, mode = _side(settings.get("crop_size", given)), "shortest"
    else:
        given = crop = _side(settings.get("size", size))
        mode = "squash"
    if given != size or crop != size:
        raise UnsupportedModelError(f"{source}: pictures are prepared for another size than the model's {size} pixels")
    means = {name: settings[f"image_{name}"] for name in ("mean", "std") if settings.get(f"image_{name}") is not None}
    return Preprocess(size, interpolation=interpolation, resize_mode=mode, **means)  # type: ignore[arg-type]


def _side(size: Any, keys: tuple[str, ...] = ("height", "width")) -> int | None:
    """The one number of a size, which may be a number or a mapping; None where it is neither, or no square."""
    given = [size.get(key) for key in keys] if isinstance(size, dict) else [size]
    return given[0] if isinstance(given[0], int) and given.count(given[0]) == len(given) else None


def _check_end(text: dict[str, Any], source: str) -> None:
    """The embedding is read at the highest id, which must be the end token; 2 is an old way to say that it is."""
    eos, highest = text["eos_token_id"], text["vocab_size"] - 1
    if eos not in (2, highest):
        raise UnsupportedModelError(
            f"{source}: eos_token_id = {eos} is not supported; it is not the highest, {highest}"
        )


def _image_config(vision: dict[str, Any], kind: str, source: str) -> VisionTransformerConfig:
    clip = kind == "clip"
    return VisionTransformerConfig(
        image_size=_square(vision["image_size"], source),
        patch_size=_square(vision["patch_size"], source),
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        mlp_width=vision["intermediate_size"],
        activation=_activation(vision, source),
        norm_eps=vision["layer_norm_eps"],
        pre_norm=clip,
        pooling="class" if clip else "attention",
        norm_after_pooling=clip,
        class_token=clip,
        patch_bias=not clip,
        projection=clip,
    )


def _text_config(text: dict[str, Any], kind: str, source: str) -> TextConfig:
    clip = kind == "clip"
    return TextConfig(
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        width=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        mlp_width=text["intermediate_size"],
        activation=_activation(text, source),
        norm_eps=text["layer_norm_eps"],
        causal=clip,
        pooling="end_of_text" if clip else "last",
        projection_bias=not clip,
    )


def _activation(section: dict[str, Any], source: str) -> Activation:
    name = section["hidden_act"]
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"{source}: hidden_act = {name} is not supported; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _square(size: Any, source: str) -> int:
    side = size if isinstance(size, int) else size[0]
    if not isinstance(size, int) and [*size] != [side, side]:
        raise UnsupportedModelError(f"{source}: only square images and patches are supported, not {size}")
    return int(side)


def _tokenizer(folder: Path, config: ClipConfig) -> Tokenizer:
    """CLIP's file cleans by itself; SigLIP's classes clean before it, and SigLIP 2 was trained in lower case."""
    settings = read_tokenizer_config(folder)
    cleaning = "none"
    if not config.text.causal:
        cleaning = "siglip" if settings.get("do_lower_case", True) else "siglip_cased"
        if str(settings.get("tokenizer_class")).startswith(("Gemma", "Siglip2")):
            cleaning = "lower"
    tokenizer = read_tokenizer(folder, config.text.context_length, cleaning)
    if max(tokenizer.end_id, tokenizer.pad_id) >= config.text.vocab_size:
        raise ModelFileError(f"{folder}: the tokenizer has more words than the model, {config.text.vocab_size}")
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path.parent}: cannot read {path.name}: {error}") from error
    if not isinstance(data, dict):
        raise ModelFileError(f"{path.parent}: {path.name} is no configuration")
    return data

"""open_clip's models: a registered name with a tag, or a local folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from d4c.artifact.architecture import Activation, ClipConfig, ResNetConfig, TextConfig, VisionTransformerConfig
from d4c.artifact.open_clip_names import Entry, name_table
from d4c.errors import ModelFileError, UnknownNameError, UnsupportedModelError
from d4c.inputs import Preprocess, Tokenizer
from d4c.inputs.tokenizer_files import read_tokenizer
from d4c.models.clip import Clip, clip_from_state
from d4c.models.hub import fetch_tokenizer
from d4c.models.renaming import renamed_parameters
from d4c.models.timm_towers import image_config_from_timm
from d4c.models.torchvision_schemas import declare_torchvision_schemas
from d4c.models.weight_files import read_tensors

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
# Options of open_clip's configurations that are translated below, then those that change nothing when it encodes with
# its own towers. Any other would change the network in a way that the canonical towers do not have.
_COVERED = {
    "vision_cfg": ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value",
                   "no_ln_pre", "final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs",
                   "patch_dropout", "pos_embed_type", "output_tokens", "attn_pooler_queries", "attn_pooler_heads",
                   "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
                   "timm_drop_path"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value",
                 "no_causal_mask", "pool_type", "proj_bias", "proj_type", "act_kwargs", "norm_kwargs",
                 "final_ln_after_pool", "output_tokens", "pad_id", "eos_id", "tokenizer_mode", "tokenizer_kwargs",
                 "hf_tokenizer_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}  # fmt: skip


def load_registered(name: str, tag: str) -> Clip:
    """Load a model of open_clip's registry, downloading its weights if they are not cached.

    Args:
        name: as `open_clip.list_models()` spells it; tag: as `open_clip.list_pretrained_tags_by_model(name)` does.

    Raises:
        UnknownNameError: no such name or tag.
        UnsupportedModelError: an architecture the canonical towers do not cover.
        ModelFileError: the weights cannot be fetched or read.
    """
    model_cfg = registered_config(name)
    from open_clip import pretrained

    tag_cfg = pretrained.get_pretrained_cfg(name, tag)
    if not tag_cfg:
        raise UnknownNameError(f"tag of {name}", tag, pretrained.list_pretrained_tags_by_model(name))
    # The registry's plain names say GELU even for tags that were trained with QuickGELU: the tag knows.
    model_cfg = {**model_cfg, "quick_gelu": model_cfg.get("quick_gelu", False) or tag_cfg.get("quick_gelu", False)}
    config = config_from_open_clip(model_cfg, name)
    tokenizer = tokenizer_from_open_clip(model_cfg["text_cfg"], fetch_tokenizer)
    try:
        path = pretrained.download_pretrained(tag_cfg)
    except Exception as error:  # every hub and URL client has its own
        raise ModelFileError(f"cannot fetch the weights of {name}, tag {tag}; is the network there?") from error
    preprocess = preprocess_from_open_clip(tag_cfg, config.image.image_size)
    return clip_from_open_clip_state(config, read_tensors(Path(path)), preprocess, f"{name}__{tag}", tokenizer)


def registered_config(name: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a registered name.

    Raises:
        UnknownNameError: it is not registered.
    """
    declare_torchvision_schemas()
    import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        raise UnknownNameError("model", name, open_clip.list_models())
    return config


def load_folder(folder: Path, source: str, find_tokenizer: Callable[[str], Path] | None = None) -> Clip:
    """Load an open_clip folder: `open_clip_config.json`, one weight file, perhaps a tokenizer.

    Args:
        find_tokenizer: from the repository that the configuration names to a folder; this folder where it is None.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: an architecture the canonical towers do not cover.
    """
    settings, config = read_config(folder, source)
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise ModelFileError(f"{folder}: no weights; expected one of {', '.join(WEIGHT_FILES)}")
    preprocess = preprocess_from_open_clip(settings.get("preprocess_cfg") or {}, config.image.image_size)
    text = settings["model_cfg"]["text_cfg"]
    tokenizer = tokenizer_from_open_clip(text, find_tokenizer or (lambda _: folder))
    return clip_from_open_clip_state(config, read_tensors(weights), preprocess, source, tokenizer)


def read_config(folder: Path, source: str) -> tuple[dict[str, Any], ClipConfig]:
    """`open_clip_config.json` as it is and translated; raises as `load_folder` does."""
    try:
        settings: dict[str, Any] = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        model_cfg = settings["model_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{folder}: cannot read open_clip_config.json: {error}") from error
    return settings, config_from_open_clip(model_cfg, source)


def config_from_open_clip(model_cfg: dict[str, Any], source: str) -> ClipConfig:
    """Translate open_clip's `model_cfg`.

    Raises:
        UnsupportedModelError: an option or a size that the canonical towers do not have, by name.
        ModelFileError: it is no `model_cfg`.
    """
    try:
        return _config(model_cfg, source)
    except UnsupportedModelError:
        raise
    except ValueError as error:
        raise UnsupportedModelError(f"{source}: {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ModelFileError(f"{source}: not a configuration of open_clip: {type(error).__name__}: {error}") from error


def clip_from_open_clip_state(
    config: ClipConfig,
    theirs: dict[str, Tensor],
    preprocess: Preprocess,
    source: str,
    tokenizer: Tokenizer | None = None,
) -> Clip:
    """Translate open_clip's parameters by the name table.

    Args:
        tokenizer: OpenAI's where it is None.

    Raises:
        ModelFileError: names or shapes do not fit the configuration.
    """
    prefix = "text." if "text.token_embedding.weight" in theirs else ""
    table = name_table(config, prefix)
    if "logit_bias" in theirs:
        table.append(Entry("logit_bias", ("logit_bias",)))
    ignored = ("num_batches_tracked", "attn_mask", "input_resolution", "context_length", "vocab_size")
    state = renamed_parameters(theirs, table, source, ignored)
    tokenizer = tokenizer or Tokenizer.openai(config.text.context_length)
    return clip_from_state(config, state, tokenizer=tokenizer, preprocess=preprocess, source=source)


def tokenizer_from_open_clip(text: dict[str, Any], find_folder: Callable[[str], Path]) -> Tokenizer:
    """The tokenizer that a `text_cfg` asks for: OpenAI's, or that of a Hugging Face repository.

    Args:
        find_folder: where the files of the named repository lie.

    Raises:
        ModelFileError: its files are missing or broken.
    """
    name, context_length = text.get("hf_tokenizer_name"), text.get("context_length", 77)
    if not name:
        return Tokenizer.openai(context_length)
    options = {"clean": "whitespace", **(text.get("tokenizer_kwargs") or {})}
    return read_tokenizer(find_folder(name), context_length, f"open_clip_{options['clean']}")


def preprocess_from_open_clip(settings: dict[str, Any], size: int) -> Preprocess:
    """Translate `preprocess_cfg`; what it does not say is OpenAI's.

    Raises:
        UnsupportedModelError: pictures are padded with another colour than black.
        ModelFileError: it makes no sense.
    """
    if settings.get("resize_mode") == "longest" and settings.get("fill_color"):
        raise UnsupportedModelError(f"preprocess_cfg option fill_color = {settings['fill_color']} is not supported")
    given = {k: settings[k] for k in ("mean", "std", "interpolation", "resize_mode") if settings.get(k) is not None}
    return Preprocess(size, **given)


def _config(model_cfg: dict[str, Any], source: str) -> ClipConfig:
    if "multimodal_cfg" in model_cfg:
        raise UnsupportedModelError(f"{source}: CoCa models are not supported (multimodal_cfg)")
    for section, options in _COVERED.items():
        for option, value in model_cfg[section].items():
            if value and option not in options:
                raise UnsupportedModelError(f"{source}: {section} option {option} = {value} is not supported")
    _check_tokenizer(model_cfg["text_cfg"], source)
    quick = bool(model_cfg.get("quick_gelu", False))
    image = _image_config(model_cfg["vision_cfg"], quick, source)
    return ClipConfig(model_cfg["embed_dim"], image, _text_config(model_cfg["text_cfg"], quick, source))


def _check_tokenizer(text: dict[str, Any], source: str) -> None:
    """Refuse what would give other ids than `Tokenizer` does."""
    options = text.get("tokenizer_kwargs") or {}
    named = bool(text.get("hf_tokenizer_name"))
    for option, value in options.items():
        if not named or option != "clean" or value not in ("lower", "whitespace", "canonicalize"):
            raise UnsupportedModelError(f"{source}: tokenizer_kwargs option {option} = {value} is not supported")
    if named and text.get("tokenizer_mode"):
        raise UnsupportedModelError(f"{source}: tokenizer_mode = {text['tokenizer_mode']} is not supported")


def _image_config(vision: dict[str, Any], quick: bool, source: str) -> VisionTransformerConfig | ResNetConfig:
    if vision.get("timm_model_name"):
        return image_config_from_timm(vision, source)
    size = _square(vision.get("image_size", 224), source)
    width, head = vision.get("width", 768), vision.get("head_width", 64)
    layers = vision.get("layers", 12)
    if isinstance(layers, list | tuple):
        return ResNetConfig(size, width, (layers[0], layers[1], layers[2], layers[3]), width * 32 // head)
    pooling = {"tok": "class", "avg": "mean"}.get(vision.get("pool_type", "tok"))
    if pooling is None:
        raise UnsupportedModelError(f"{source}: vision_cfg option pool_type = {vision['pool_type']} is not supported")
    return VisionTransformerConfig(
        image_size=size,
        patch_size=_square(vision.get("patch_size", 16), source),
        width=width,
        layers=layers,
        heads=width // head,
        mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
        activation=_activation(vision, quick),
        norm_eps=(vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        pre_norm=not vision.get("no_ln_pre", False),
        pooling="class" if pooling == "class" else "mean",
        norm_after_pooling=vision.get("final_ln_after_pool", False),
        layer_scale=vision.get("ls_init_value") is not None,
    )


def _text_config(text: dict[str, Any], quick: bool, source: str) -> TextConfig:
    width = text.get("width", 512)
    pooling = text.get("pool_type", "argmax")
    if pooling not in ("argmax", "last", "first") or text.get("proj_type", "linear") != "linear":
        raise UnsupportedModelError(
            f"{source}: text_cfg pool_type = {pooling}, proj_type = {text.get('proj_type', 'linear')} is not supported"
        )
    return TextConfig(
        context_length=text.get("context_length", 77),
        vocab_size=text.get("vocab_size", 49408),
        width=width,
        layers=text.get("layers", 12),
        heads=text.get("heads", 8),
        mlp_width=int(width * text.get("mlp_ratio", 4.0)),
        activation=_activation(text, quick),
        norm_eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
        causal=not text.get("no_causal_mask", False),
        pooling="end_of_text" if pooling == "argmax" else pooling,
        layer_scale=text.get("ls_init_value") is not None,
        projection_bias=text.get("proj_bias", False),
    )


def _activation(section: dict[str, Any], quick: bool) -> Activation:
    if quick:
        return "quick_gelu"
    return "gelu_tanh" if (section.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"


def _square(size: Any, source: str) -> int:
    if isinstance(size, int):
        return size
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        return int(size[0])
    raise UnsupportedModelError(f"{source}: only square images and patches are supported, not {size}")

"""Transformers' own models with random weights, in the folders that their libraries write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from d4c.inputs.tokenizer import END, START
from models.oracle import draw

WORDS = ("a", "photo", "of", "the", "cat", "dog", "red", "car", "rain", "it")
TEXTS = (
    "a photo of a cat.", "The RED car", "don't stop!", "  two   spaces\tand a tab\n",
    "under_score -- dashes; (brackets)",
    "", " ", "...", "猫の写真", "schöner Tag", "\N{GRINNING FACE} emoji", "1234567890 3.14", "cat " * 40,
    "x" * 80, "a\u2581b",
    "ＦＵＬＬ　ｗｉｄｔｈ", "salt &amp; pepper", "İstanbul",
)  # fmt: skip
SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3}
PICTURES = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 2}


def letters() -> dict[str, int]:
    """Bytes as CLIP's tokenizer writes them, then the same at the end of a word."""
    from d4c.inputs.tokenizer import _byte_letters

    plain = _byte_letters()
    return {word: i for i, word in enumerate([*plain, *(c + "</w>" for c in plain)])}


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's, with a handful of merges; the end token has the highest id."""
    ids = letters()
    merges = [("a", "t</w>"), ("c", "at</w>"), ("p", "h"), ("o", "f</w>"), ("t", "h"), ("th", "e</w>")]
    for first, second in merges:
        ids[first + second] = len(ids)
    ids |= {START: len(ids), END: len(ids) + 1}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=16)


def siglip2_tokenizer() -> Siglip2Tokenizer:
    """SigLIP 2's, with bytes, letters and a handful of merges."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    words += [*"abcdefghijklmnopqrstuvwxyz.'!", "ca", "cat", "\u2581cat", "ph", "of", "\u2581of"]
    merges = [("c", "a"), ("ca", "t"), ("\u2581", "cat"), ("p", "h"), ("o", "f"), ("\u2581", "of")]
    return Siglip2Tokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=merges,
        model_max_length=16,
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
    )


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        tensor.data.copy_(draw(name, tensor, generator))
    return model.eval().requires_grad_(False)


def clip_folder(folder: Path, vision: dict[str, Any] | None = None, **text: Any) -> CLIPModel:
    """A CLIP of Transformers, saved with all that it needs."""
    tokenizer = clip_tokenizer()
    config = CLIPConfig(
        text_config={**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 2, **text},
        vision_config={**PICTURES, "image_size": 24, "patch_size": 8, **(vision or {})},
        projection_dim=20,
    )
    model = randomize(CLIPModel(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = config.vision_config.image_size
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)
    return model


def siglip_folder(folder: Path, vision: dict[str, Any] | None = None, **text: Any) -> SiglipModel:
    """A SigLIP of Transformers with SigLIP 2's tokenizer, saved with all that it needs."""
    tokenizer = siglip2_tokenizer()
    vision = {**PICTURES, "image_size": 24, "patch_size": 8, **(vision or {})}
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 16, **text}
    text["projection_size"] = vision["hidden_size"]
    model = randomize(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": vision["image_size"], "width": vision["image_size"]}).save_pretrained(folder)
    return model


def features(model: nn.Module, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Images and texts as Transformers embeds them."""
    with torch.no_grad():
        return model.get_image_features(pixels).pooler_output, model.get_text_features(ids).pooler_output

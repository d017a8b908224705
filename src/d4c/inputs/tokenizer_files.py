"""The tokenizer of a folder in Hugging Face's layout, as their libraries use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, processors

from d4c.errors import ModelFileError, UnsupportedModelError
from d4c.inputs.sentencepiece import read_sentencepiece
from d4c.inputs.tokenizer import Tokenizer, byte_pair_encoder

FILES = ("tokenizer.json", "spiece.model", "vocab.json")
_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # ASCII's


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, or nothing where the folder has none.

    Raises:
        ModelFileError: it is broken.
    """
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelFileError(f"{path}: not a tokenizer's configuration")
    return config


def read_tokenizer(folder: Path, context_length: int, cleaning: str) -> Tokenizer:
    """Read `tokenizer.json`, else `spiece.model`, else `vocab.json` and `merges.txt`.

    Start and end token are those of the file's template, unless `add_bos_token` or `add_eos_token` say otherwise.

    Args:
        context_length: ids a text is padded and cut to; cleaning: a name of `d4c.inputs.cleaning.CLEANINGS`.

    Raises:
        ModelFileError: no such file, or a broken one.
        UnsupportedModelError: texts are padded on the left.
    """
    config = read_tokenizer_config(folder)
    if config.get("padding_side", "right") != "right":
        raise UnsupportedModelError(
            f"{folder}: tokenizer option padding_side = {config['padding_side']} is not supported"
        )
    try:
        encoder = _read_encoder(folder)
        encoder.no_padding()
        encoder.no_truncation()
        start, end = _frame(encoder, config)
        pad = _named(config, "pad_token") or end
        pad_id = encoder.token_to_id(pad)
    except ModelFileError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception on a bad file
        raise ModelFileError(f"{folder}: cannot read the tokenizer: {error}") from error
    if pad_id is None:
        raise ModelFileError(f"{folder}: the tokenizer lacks its pad token {pad}")
    _carry_cleaning(encoder, cleaning)
    _carry_frame(encoder, start, end)
    return Tokenizer(encoder, context_length, pad_id, start=start, end=end, cleaning=cleaning)


def _read_encoder(folder: Path) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if (folder / "spiece.model").is_file():
        return read_sentencepiece(folder / "spiece.model")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        pairs = [line.split() for line in lines if line and not line.startswith("#version")]
        return byte_pair_encoder(ids, [(first, second) for first, second in pairs])
    raise ModelFileError(f"{folder}: no tokenizer; expected one of {', '.join(FILES)}")


def _frame(encoder: tokenizers.Tokenizer, config: dict[str, Any]) -> tuple[str | None, str]:
    """The tokens before and after every text."""
    around = encoder.encode("", add_special_tokens=True).tokens
    if "add_bos_token" in config or "add_eos_token" in config:
        around = [_named(config, "bos_token") or "<bos>"] if config.get("add_bos_token") else []
        around += [_named(config, "eos_token") or "<eos>"] if config.get("add_eos_token") else []
    if not around:
        around = [_named(config, "eos_token") or "</s>"]  # a SentencePiece file has no template
    if len(around) > 2:
        raise ModelFileError(f"the tokenizer puts {' '.join(around)} around a text; one or two tokens are supported")
    return (around[0] if len(around) == 2 else None), around[-1]


def _named(config: dict[str, Any], key: str) -> str | None:
    token = config.get(key)
    return token.get("content") if isinstance(token, dict) else token


def _carry_cleaning(encoder: tokenizers.Tokenizer, cleaning: str) -> None:
    """Let the file itself do what Transformers' classes do before it, for consumers that do not clean."""
    steps: list[normalizers.Normalizer] = []
    if cleaning in ("siglip", "lower"):
        steps.append(normalizers.Lowercase())
    if cleaning in ("siglip", "siglip_cased"):
        steps += [normalizers.Replace(tokenizers.Regex(_PUNCTUATION), ""), normalizers.Strip()]
        steps.append(normalizers.Replace(tokenizers.Regex(r"\s+"), " "))
    if steps:
        own = encoder.normalizer
        encoder.normalizer = normalizers.Sequence([*steps, own] if own is not None else steps)


def _carry_frame(encoder: tokenizers.Tokenizer, start: str | None, end: str) -> None:
    """Let the file itself put these tokens around a text."""
    special = [token for token in (start, end) if token is not None]
    if encoder.encode("", add_special_tokens=True).tokens == special:
        return
    encoder.add_special_tokens(special)
    encoder.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}" if start is not None else f"$A {end}",
        special_tokens=[(token, encoder.token_to_id(token)) for token in special],
    )

"""A SentencePiece model (`spiece.model`) to an encoder of the `tokenizers` library, which reads no such files.

The file is one protocol buffer message, ModelProto of sentencepiece_model.proto (github.com/google/sentencepiece); of
it only the fields below are read, by their numbers, so neither sentencepiece nor protobuf is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from d4c.errors import ModelFileError

Value = int | bytes
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of ModelProto
TEXT, SCORE, TYPE = 1, 2, 3  # of a piece
MODEL_TYPE, BYTE_FALLBACK = 3, 35  # of the trainer's settings
CHARACTER_MAP, DUMMY_PREFIX, NO_EXTRA_SPACES, SPACES_AS_SYMBOL = 2, 3, 4, 5  # of the normalizer's settings
UNIGRAM, UNKNOWN = 1, 2  # values of MODEL_TYPE and TYPE


def read_sentencepiece(path: Path) -> tokenizers.Tokenizer:
    """Read a Unigram model.

    Raises:
        ModelFileError: the file is broken, or holds another kind of model.
    """
    try:
        message = list(_fields(path.read_bytes()))
        settings = {number: dict(_fields(_bytes(value))) for number, value in message if number != PIECES}
        pieces = [dict(_fields(_bytes(value))) for number, value in message if number == PIECES]
        trainer, rules = settings.get(TRAINER, {}), settings[NORMALIZER]
        if trainer.get(MODEL_TYPE, UNIGRAM) != UNIGRAM or trainer.get(BYTE_FALLBACK, 0):
            raise ModelFileError(
                f"{path}: only Unigram models without byte fallback are supported; give tokenizer.json"
            )
        words = [(_bytes(p[TEXT]).decode(), struct.unpack("<f", _bytes(p.get(SCORE, bytes(4))))[0]) for p in pieces]
        unknown = next(i for i, piece in enumerate(pieces) if piece.get(TYPE, 1) == UNKNOWN)
        encoder = tokenizers.Tokenizer(models.Unigram(words, unknown, byte_fallback=False))
        encoder.normalizer = _normalizer(rules)
    except ModelFileError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelFileError(f"{path}: cannot be read as a SentencePiece model: {error}") from error
    prefix = "always" if rules.get(DUMMY_PREFIX, 1) else "never"
    encoder.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme=prefix, split=False)
    return encoder


def _normalizer(rules: dict[int, Value]) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if rules.get(CHARACTER_MAP):
        steps.append(normalizers.Precompiled(_bytes(rules[CHARACTER_MAP])))
    if rules.get(NO_EXTRA_SPACES, 1):
        steps.append(normalizers.Replace(tokenizers.Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if rules.get(SPACES_AS_SYMBOL, 1):
        steps.append(normalizers.Replace(" ", "\u2581"))
    if rules.get(DUMMY_PREFIX, 1):  # which Metaspace does not set before a text that begins with one
        steps.append(normalizers.Replace(tokenizers.Regex("\\A\u2581"), "\u2581\u2581"))
    return normalizers.Sequence(steps)


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"a number {value} where bytes belong")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(field number, value) of a message on the wire: whole numbers as int, everything else as its bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if length is None:
            if kind != 2:
                raise ValueError(f"unknown wire type {kind}")
            length, position = _varint(data, position)
        if position + length > len(data):
            raise ValueError("it ends early")
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("it ends early")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position

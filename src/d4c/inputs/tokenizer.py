"""Texts to token ids: one tokenizer for the torch models and for the runtime."""

from __future__ import annotations

import functools
import gzip
import html
import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers, processors
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence

from d4c.errors import ModelFileError

logger = logging.getLogger(__name__)

START, END = "<|startoftext|>", "<|endoftext|>"
# What one BPE word is (CLIP, arXiv:2103.00020, released code): contractions, letters, single digits, the rest.
# U+0345, whose upper case is a letter, is none of these where case is ignored: it is dropped, and ends a word.
WORD_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}" + "\u0345]+"
NUM_MERGES = 49152 - 256 - 2


class Tokenizer:
    """Cleans, splits and encodes texts exactly as open_clip's SimpleTokenizer does.

    Texts are repaired (ftfy, where it is installed), HTML entities are resolved twice, white space is collapsed and
    letters are lowered. A text too long for the context keeps its end token. The names of the special tokens have no
    special meaning inside a text.

    Args:
        encoder: byte-pair encoder of the `tokenizers` library that knows `START` and `END`.
        context_length: ids a text is padded and cut to.
        pad_id: id after the end token; OpenAI pads with 0.
    """

    def __init__(self, encoder: tokenizers.Tokenizer, context_length: int, pad_id: int = 0) -> None:
        start, end = encoder.token_to_id(START), encoder.token_to_id(END)
        if start is None or end is None:
            raise ModelFileError(f"tokenizer.json lacks {START} or {END}")
        self.context_length, self.pad_id, self.start_id, self.end_id = context_length, pad_id, start, end
        self._file = encoder.to_str(pretty=False)
        # The cleaning below replaces the file's normalizer, which serves consumers that do not clean.
        self._encoder = tokenizers.Tokenizer.from_str(self._file)
        self._encoder.normalizer = NormalizerSequence([])
        self._encoder.encode_special_tokens = True

    def __call__(self, texts: str | Sequence[str]) -> NDArray[np.int64]:
        """Encode.

        Returns:
            [text, context_length] int64: start, words, end, padding.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = np.full((len(texts), self.context_length), self.pad_id, np.int64)
        encodings = self._encoder.encode_batch([clean(t) for t in texts], add_special_tokens=False)
        for row, encoding in zip(ids, encodings, strict=True):
            words = [self.start_id, *encoding.ids[: self.context_length - 2], self.end_id]
            row[: len(words)] = words
        return ids

    def __deepcopy__(self, _: object) -> Tokenizer:
        """Nothing changes a tokenizer, so copies of a model share it."""
        return self

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which Hugging Face's CLIPTokenizer reads too."""
        (folder / "tokenizer.json").write_text(self._file, encoding="utf-8")
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
            "d4c_pad_id": self.pad_id,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote.

        Raises:
            ModelFileError: a file is missing or is not what its name says.
        """
        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            encoder = tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
            return cls(encoder, config["model_max_length"], config.get("d4c_pad_id", 0))
        except ModelFileError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception on a bad file
            raise ModelFileError(f"{folder}: cannot read the tokenizer: {error}") from error

    @classmethod
    def openai(cls, context_length: int = 77) -> Tokenizer:
        """OpenAI's 49,408-token byte-pair encoder, from the vocabulary that open_clip carries."""
        return cls(_openai_encoder(), context_length)


def clean(text: str) -> str:
    """Repair, resolve entities, collapse white space, lower: open_clip's `lower` cleaning."""
    text = html.unescape(html.unescape(_repair(text)))
    return " ".join(text.split()).lower()


def _repair(text: str) -> str:
    ftfy = _ftfy_fix()
    if ftfy is None:
        if not text.isascii():
            logger.warning("ftfy is not installed: texts with broken encoding are not repaired")
        return text
    return str(ftfy(text))


@functools.cache
def _ftfy_fix():  # type: ignore[no-untyped-def]  # ftfy is optional in the runtime
    if importlib.util.find_spec("ftfy") is None:
        return None
    return importlib.import_module("ftfy").fix_text


@functools.cache
def _openai_encoder() -> tokenizers.Tokenizer:
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise ModelFileError("open_clip, which carries OpenAI's vocabulary, is not installed")
    lines = gzip.decompress((Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes())
    pairs = [line.split() for line in lines.decode("utf-8").split("\n")[1 : NUM_MERGES + 1]]
    merges = [(first, second) for first, second in pairs]
    letters = _byte_letters()
    words = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    encoder = tokenizers.Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            merges,
            unk_token=END,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    encoder.add_special_tokens([START, END])
    encoder.normalizer = NormalizerSequence([NFC(), Replace(tokenizers.Regex(r"\s+"), " "), Lowercase()])
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    end, start = (END, len(words) - 1), (START, len(words) - 2)
    encoder.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False, trim_offsets=False)
    return encoder


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in the vocabulary's order (GPT-2's byte-level BPE)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]

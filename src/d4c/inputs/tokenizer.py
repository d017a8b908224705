"""Texts to token ids: one tokenizer for the torch models and for the runtime."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers, processors
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence

from d4c.errors import ModelFileError
from d4c.inputs.cleaning import CLEANINGS

START, END = "<|startoftext|>", "<|endoftext|>"
# What one BPE word is (CLIP, arXiv:2103.00020, released code): contractions, letters, single digits, the rest.
# U+0345, whose upper case is a letter, is none of these where case is ignored: it is dropped, and ends a word.
WORD_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}" + "\u0345]+"
NUM_MERGES = 49152 - 256 - 2


class Tokenizer:
    """Cleans, splits and encodes texts exactly as the library that a model comes from does.

    By default that is open_clip's SimpleTokenizer: texts are repaired (ftfy, where it is installed), HTML entities are
    resolved twice, white space is collapsed and letters are lowered. A text too long for the context keeps its end
    token. The names of the special tokens have no special meaning inside a text.

    Args:
        encoder: of the `tokenizers` library; knows `start` and `end`.
        context_length: ids a text is padded and cut to.
        pad_id: id after the end token; OpenAI pads with 0.
        start: token before every text, or None; end: the one after it.
        cleaning: what happens to a text first, a name of `CLEANINGS`.

    Raises:
        ModelFileError: the encoder lacks a special token, or there is no such cleaning.
    """

    def __init__(
        self,
        encoder: tokenizers.Tokenizer,
        context_length: int,
        pad_id: int = 0,
        *,
        start: str | None = START,
        end: str = END,
        cleaning: str = "open_clip",
    ) -> None:
        start_id = None if start is None else encoder.token_to_id(start)
        end_id = encoder.token_to_id(end)
        if end_id is None or (start is not None and start_id is None):
            raise ModelFileError(f"tokenizer.json lacks {start} or {end}")
        if cleaning not in CLEANINGS:
            raise ModelFileError(f"unknown cleaning of texts '{cleaning}'; known: {', '.join(CLEANINGS)}")
        self.context_length, self.pad_id, self.start_id, self.end_id = context_length, pad_id, start_id, end_id
        self._start, self._end, self.cleaning = start, end, cleaning
        self._file = encoder.to_str(pretty=False)
        self._encoder = tokenizers.Tokenizer.from_str(self._file)
        if cleaning == "open_clip":  # replaces the file's normalizer, which serves consumers that do not clean
            self._encoder.normalizer = NormalizerSequence([])
        self._encoder.encode_special_tokens = True

    def __call__(self, texts: str | Sequence[str]) -> NDArray[np.int64]:
        """Encode.

        Returns:
            [text, context_length] int64: start where there is one, words, end, padding.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = np.full((len(texts), self.context_length), self.pad_id, np.int64)
        cleaned = [CLEANINGS[self.cleaning](text) for text in texts]
        before = [] if self.start_id is None else [self.start_id]
        room = self.context_length - len(before) - 1
        for row, encoding in zip(ids, self._encoder.encode_batch(cleaned, add_special_tokens=False), strict=True):
            words = [*before, *encoding.ids[:room], self.end_id]
            row[: len(words)] = words
        return ids

    def __deepcopy__(self, _: object) -> Tokenizer:
        """Nothing changes a tokenizer, so copies of a model share it."""
        return self

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which Hugging Face's tokenizers read too."""
        (folder / "tokenizer.json").write_text(self._file, encoding="utf-8")
        clip = (self._start, self._end) == (START, END)
        config = {
            "tokenizer_class": "CLIPTokenizer" if clip else "PreTrainedTokenizerFast",
            "model_max_length": self.context_length,
            "bos_token": self._start,
            "eos_token": self._end,
            "pad_token": END if clip else self._encoder.id_to_token(self.pad_id),
            "unk_token": END if clip else None,
            "d4c_pad_id": self.pad_id,
        }
        config = {key: value for key, value in config.items() if value is not None}
        if not clip:
            config |= {"padding_side": "right", "d4c_start": self._start, "d4c_end": self._end}
        if self.cleaning != "open_clip":
            config["d4c_cleaning"] = self.cleaning
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
            return cls(
                encoder,
                config["model_max_length"],
                config.get("d4c_pad_id", 0),
                start=config.get("d4c_start", START),
                end=config.get("d4c_end", END),
                cleaning=config.get("d4c_cleaning", "open_clip"),
            )
        except ModelFileError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception on a bad file
            raise ModelFileError(f"{folder}: cannot read the tokenizer: {error}") from error

    @classmethod
    def openai(cls, context_length: int = 77) -> Tokenizer:
        """OpenAI's 49,408-token byte-pair encoder, from the vocabulary that open_clip carries."""
        return cls(_openai_encoder(), context_length)


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
    return byte_pair_encoder({word: i for i, word in enumerate(words)}, merges)


def byte_pair_encoder(ids: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's byte-pair encoder with a vocabulary of one's own, which holds `START` and `END`.

    Args:
        ids: by word; merges: pairs of words, the first ones first.
    """
    encoder = tokenizers.Tokenizer(
        models.BPE(ids, merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>")
    )
    encoder.add_special_tokens([START, END])
    encoder.normalizer = NormalizerSequence([NFC(), Replace(tokenizers.Regex(r"\s+"), " "), Lowercase()])
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = (START, ids[START]), (END, ids[END])
    encoder.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False, trim_offsets=False)
    return encoder


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in the vocabulary's order (GPT-2's byte-level BPE)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]

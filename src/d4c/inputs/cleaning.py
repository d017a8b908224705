"""What is done to a text before it is split into tokens: each model wants what its training did."""

from __future__ import annotations

import functools
import html
import importlib.util
import logging
import string
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_lower(text: str) -> str:
    """Repair, resolve entities, collapse white space, lower: open_clip's `lower`, its default for CLIP."""
    return clean_whitespace(text).lower()


def clean_whitespace(text: str) -> str:
    """Repair, resolve entities, collapse white space: open_clip's `whitespace`, its default for other vocabularies."""
    return " ".join(html.unescape(html.unescape(_repair(text))).split())


def clean_canonicalize(text: str) -> str:
    """Repair, resolve entities, drop ASCII punctuation, lower: open_clip's `canonicalize`, for SigLIP."""
    text = html.unescape(html.unescape(_repair(text))).replace("_", " ").translate(_NO_PUNCTUATION)
    return " ".join(text.lower().split())


def clean_siglip(text: str) -> str:
    """Drop ASCII punctuation and collapse white space in lower case: Transformers' SiglipTokenizer."""
    return clean_siglip_cased(text.lower())


def clean_siglip_cased(text: str) -> str:
    """The same with `do_lower_case` off. Its vocabulary writes a space as U+2581, which so means one in a text too."""
    return " ".join(text.replace("\u2581", " ").translate(_NO_PUNCTUATION).split())


# By the name that an artifact's tokenizer_config.json gives. "lower" is SigLIP 2's, "none" leaves all to the file.
CLEANINGS: Mapping[str, Callable[[str], str]] = {
    "open_clip": clean_lower,  # for OpenAI's vocabulary: replaces the file's own normalizer
    "open_clip_lower": clean_lower,
    "open_clip_whitespace": clean_whitespace,
    "open_clip_canonicalize": clean_canonicalize,
    "siglip": clean_siglip,
    "siglip_cased": clean_siglip_cased,
    "lower": str.lower,
    "none": str,
}


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

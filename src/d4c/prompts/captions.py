"""Captions of many shapes and lengths, as templates: searches are more than "a photo of a cat."."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from importlib import resources

NUM_TEMPLATES = 480
AN = re.compile(r"\b([Aa])(?= [aeiou])")


def caption_templates() -> tuple[str, ...]:
    """Templates with `{c}` out of a small grammar, the same every time, no two equal.

    Forms of two words and of forty take turns until the shortest have no new words. Among the words are figures,
    colours, lists, and letters without sense, which the tokenizer cuts into rare pieces.
    """
    grammar = json.loads(resources.files("d4c.prompts").joinpath("captions.json").read_text("utf-8"))
    forms = grammar.pop("forms")
    draw = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < NUM_TEMPLATES:
        for form in forms:
            found.setdefault(_fill(form, grammar, draw))
    return tuple(found)[:NUM_TEMPLATES]


def _fill(form: str, words: Mapping[str, Sequence[str]], draw: random.Random) -> str:
    def word(slot: re.Match[str]) -> str:
        name = slot[1]
        if name == "c":
            return slot[0]
        if name == "digits":
            return str(draw.randrange(10 ** draw.randint(1, 5)))
        if name == "code":
            return " ".join("".join(draw.choices(string.ascii_lowercase + string.digits, k=4)) for _ in range(3))
        return draw.choice(words[name])

    return AN.sub(r"\1n", re.sub(r"\{(\w+)\}", word, form))

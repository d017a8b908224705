"""Prompt banks: what the images should show, and what the text tower is calibrated with."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from d4c.errors import PromptError
from d4c.prompts.captions import caption_templates

__all__ = ["PromptBank", "calibration_texts", "load_prompts", "load_templates", "read_prompts"]


@dataclass(frozen=True, slots=True)
class PromptBank:
    """Class names in named groups, and templates to put them in.

    Raises:
        PromptError: no names, no templates, a template without `{c}`, or a name given twice.
    """

    groups: Mapping[str, tuple[str, ...]]
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.classnames or not self.templates:
            raise PromptError("a prompt bank needs class names and templates")
        for template in self.templates:
            if "{c}" not in template:
                raise PromptError(f"template without {{c}}: '{template}'")
        twice = sorted({name for name in self.classnames if self.classnames.count(name) > 1})
        if twice:
            raise PromptError(f"class name given twice: '{twice[0]}'")

    @property
    def classnames(self) -> tuple[str, ...]:
        """All names, group by group."""
        return tuple(name for names in self.groups.values() for name in names)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every name in every template, class by class."""
        return tuple(template.replace("{c}", name) for name in self.classnames for template in self.templates)

    def split(self, every: int = 8) -> tuple[PromptBank, PromptBank]:
        """Two banks without a common name: every eighth is in the second; a bank of one name gives it twice."""
        names = self.classnames
        if len(names) < 2:
            return self, self
        held = names[min(every, len(names)) - 1 :: every]
        rest = tuple(name for name in names if name not in held)
        return PromptBank({"fitted": rest}, self.templates), PromptBank({"held out": held}, self.templates)

    def without(self, other: PromptBank) -> PromptBank:
        """The names that another bank lacks; all of them where it has them all."""
        rest = tuple(name for name in self.classnames if name not in other.classnames)
        return PromptBank({"held out": rest}, self.templates) if rest else self


def load_prompts(name: str) -> PromptBank:
    """A shipped bank: "own" or "paper"."""
    return parse_prompts(json.loads(resources.files("d4c.prompts").joinpath(f"{name}.json").read_text("utf-8")), name)


def read_prompts(path: Path) -> PromptBank:
    """Read a bank from JSON: `templates`, and `groups` (name -> class names) or a flat `classnames`.

    Raises:
        PromptError: the file cannot be read, or holds something else.
    """
    return parse_prompts(_read_json(path), str(path))


def parse_prompts(data: Any, source: str) -> PromptBank:
    """Check the JSON form; errors as for `read_prompts`."""
    if not isinstance(data, dict):
        raise PromptError(f"{source}: write an object with templates and classnames")
    groups = data.get("groups", {"all": data.get("classnames", [])})
    templates = data.get("templates", [])
    if not isinstance(groups, dict) or not all(_are_texts(v) for v in [*groups.values(), templates]):
        raise PromptError(f"{source}: templates and class names are lists of texts")
    try:
        return PromptBank({k: tuple(v) for k, v in groups.items()}, tuple(templates))
    except PromptError as error:
        raise PromptError(f"{source}: {error}") from error


def load_templates(name: str) -> tuple[str, ...]:
    """Templates for calibration texts.

    Args:
        name: "generic" (our own), "captions" (those and captions of many shapes), "cifar10" or "imagenet1k" (those
            CLIP is evaluated with on these sets, as CLIP_benchmark has them), or a path to a JSON file with a list of
            `templates`.

    Raises:
        PromptError: the file cannot be read, or a template lacks `{c}`.
    """
    if name == "captions":
        return (*load_templates("generic"), *caption_templates())
    if not name.endswith(".json"):
        text = resources.files("d4c.prompts").joinpath(f"templates_{name}.json").read_text("utf-8")
        return tuple(json.loads(text)["templates"])
    data = _read_json(Path(name))
    templates = data.get("templates") if isinstance(data, dict) else data
    if not _are_texts(templates) or not templates:
        raise PromptError(f"{name}: write a list of templates, or an object with one")
    for template in templates:
        if "{c}" not in template:
            raise PromptError(f"{name}: template without {{c}}: '{template}'")
    return tuple(templates)


def calibration_texts(bank: PromptBank, templates: Sequence[str], num: int, seed: int) -> tuple[str, ...]:
    """`num` of the bank's names in the given templates, drawn without repetition; all if there are fewer."""
    texts = [template.replace("{c}", name) for name in bank.classnames for template in templates]
    return tuple(random.Random(seed).sample(texts, min(num, len(texts))))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PromptError(f"{path}: not JSON: {error}") from error


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, str) for v in values)

"""Every error that d4c raises on purpose.

D4CError
├── UsageError                 visible in arguments, recipe or prompt file; exit code 2
│   ├── UnknownNameError       also LookupError: a model, recipe, key or method that does not exist
│   ├── RecipeError            also ValueError: a recipe that cannot be read or asks for what is not possible
│   ├── PromptError            also ValueError: a prompt bank that cannot be read
│   └── UnsupportedModelError  also ValueError: a model whose architecture d4c does not cover
├── RunError                   contents or the run failed; exit code 1
│   ├── ModelFileError         also ValueError: weights or tokenizer that cannot be read or make no sense
│   ├── ImageFileError         also ValueError: a picture that cannot be read, or a folder without one
│   ├── ArtifactError          also ValueError: an artifact that is broken or of another version
│   ├── ExportError            also ValueError: an exported folder or graph that is broken or cannot be made
│   ├── GateError              a check of `verify` that was not met; exit code 3
│   └── CalibrationError       also RuntimeError: numbers went wrong while calibrating or reconstructing
└── MissingExtraError          also ImportError: an optional dependency is not installed; exit code 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class D4CError(Exception):
    """Root of all; its text is one line: what was given, what is allowed, what to try."""

    exit_code = 1


class UsageError(D4CError):
    """The arguments, the recipe or the prompt file show it."""

    exit_code = 2


class RunError(D4CError):
    """Contents or the run failed."""


class UnknownNameError(UsageError, LookupError):
    """A name that does not exist; the text offers the nearest."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = nearest(given, known)
        hint = f"; did you mean '{close}'?" if close else "."
        listed = ", ".join(known[:24]) + (f" and {len(known) - 24} more" if len(known) > 24 else "")
        super().__init__(f"unknown {kind} '{given}'{hint} Known: {listed}")


class RecipeError(UsageError, ValueError):
    """A recipe that cannot be read or asks for what is not possible."""


class PromptError(UsageError, ValueError):
    """A prompt bank that cannot be read."""


class UnsupportedModelError(UsageError, ValueError):
    """A model whose architecture d4c does not cover."""


class ModelFileError(RunError, ValueError):
    """Weights or tokenizer that cannot be read or make no sense."""


class ImageFileError(RunError, ValueError):
    """A picture that cannot be read, or a folder without one."""


class ArtifactError(RunError, ValueError):
    """An artifact that is broken or of another version."""


class ExportError(RunError, ValueError):
    """An exported folder or graph that is broken or cannot be made."""


class GateError(RunError):
    """A check that was not met."""

    exit_code = 3


class CalibrationError(RunError, RuntimeError):
    """Numbers went wrong while calibrating or reconstructing."""


class MissingExtraError(D4CError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an extra that is not installed: pip install 'd4c[{extra}]'")


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name most like the given one, or None where none is like it."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None

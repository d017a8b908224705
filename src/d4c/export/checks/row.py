"""One line of what `verify` found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A check and its outcome.

    Args:
        check: what was looked at; found: in words, with figures; passed: None where nothing was demanded.
    """

    check: str
    found: str
    passed: bool | None

"""`d4c verify`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import print_json, print_table
from d4c.errors import GateError

if TYPE_CHECKING:
    from d4c.pipeline import Verification

OUTCOMES = {True: "pass", False: "FAIL", None: ""}


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that `d4c export` made.")],
    artifact: Annotated[
        Path | None, typer.Option(help="What it was made from; default: where it lay at the time.")
    ] = None,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Check that an exported folder computes what the artifact promises; exit code 3 if it does not."""
    options.use_threads(threads)
    from d4c import pipeline

    with progress() as report:
        outcome = pipeline.verify(folder, artifact, threads, report)
    if as_json:
        print_json(verification_json(outcome))
    else:
        print_verification(outcome, folder)
    demand(outcome, folder)


def print_verification(outcome: Verification, folder: Path) -> None:
    """What was looked at, what was found, whether it will do."""
    rows = [[row.check, row.found, OUTCOMES[row.passed]] for row in outcome.rows]
    print_table(str(folder), ["check", "found", ""], rows)


def verification_json(outcome: Verification) -> dict[str, Any]:
    """The same as plain data."""
    return {"passed": outcome.passed, "rows": [dataclasses.asdict(row) for row in outcome.rows]}


def demand(outcome: Verification, folder: Path) -> None:
    """Raise `GateError` where a check failed."""
    failed = [row.check for row in outcome.rows if row.passed is False]
    if failed:
        raise GateError(f"{folder}: {len(failed)} checks failed: {', '.join(failed[:4])}")

"""`d4c classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from d4c.cli import options
from d4c.cli.tables import print_json, print_table


def classify(
    folder: Annotated[Path, typer.Argument(help="An exported folder.")],
    image: Annotated[Path, typer.Argument(help="A picture.")],
    labels: Annotated[list[str], typer.Argument(help="What it may show.")],
    template: Annotated[
        str | None, typer.Option(help="A text with {c} where the label goes; default: the folder's.")
    ] = None,
    storage: Annotated[str | None, typer.Option(help="int8 or int4, where the folder holds both.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Say which label fits a picture, with an exported folder; loads no torch."""
    from d4c.runtime import Session

    (found,) = Session(folder, storage, threads).classify(image, labels, template)
    if as_json:
        print_json(found)
    else:
        rows = [[escape(label), f"{p:.2%}"] for label, p in found.items()]
        print_table(escape(str(image)), ["label", "probability"], rows)

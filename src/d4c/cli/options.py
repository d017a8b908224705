"""Arguments that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from d4c.errors import UsageError

Model = Annotated[
    str,
    typer.Argument(
        help="tiny, tiny-rn, ViT-B/32, NAME__TAG, hf-hub:ORG/NAME, local-dir:FOLDER, FILE.pt, FILE.safetensors"
    ),
]
Pretrained = Annotated[str | None, typer.Option(help="open_clip's tag of the model.")]
RecipeName = Annotated[str, typer.Option(help="A name of `d4c recipes`, a TOML file, or a YAML file of the paper.")]
Prompts = Annotated[Path | None, typer.Option(help="JSON file with classnames (or groups) and templates.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; equal content needs equal threads.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a recipe key: synthesize.images=64")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> int:
    """Bytes of "80MB", "1.5 GiB" or "1000000"."""
    found = re.fullmatch(r"([0-9]+(?:[.][0-9]+)?) *([A-Za-z]*)", text.strip())
    unit = UNITS.get(found[2].upper() or "B") if found else None
    if found is None or unit is None:
        raise typer.BadParameter(f"'{text}' is no size; write it as in 80MB")
    return int(float(found[1]) * unit)


def use_threads(threads: int | None) -> None:
    """Set torch's threads, before anything is computed."""
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads is at least 1; got {threads}")
        import torch

        torch.set_num_threads(threads)

"""`d4c synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import print_json, print_table


def synthesize(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    pretrained: options.Pretrained = None,
    recipe: options.RecipeName = "w4a8",
    prompts: options.Prompts = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    overrides: options.Overrides = None,
    fresh: options.Fresh = False,
    as_json: options.AsJson = False,
) -> None:
    """Make calibration images: images.safetensors and a contact sheet."""
    options.use_threads(threads)
    from d4c import pipeline

    with progress() as report:
        images = pipeline.synthesize_to_folder(
            model, out=out, pretrained=pretrained, recipe=recipe, prompts=prompts, device=device, seed=seed,
            overrides=overrides or (), fresh=fresh, report=report,
        )  # fmt: skip
    about = {"images": len(images), "size": images.pixels.shape[-1], "source": images.source, "folder": str(out)}
    if as_json:
        print_json(about)
    else:
        print_table("synthesized", ["", "value"], [[key, str(value)] for key, value in about.items()])

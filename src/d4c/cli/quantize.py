"""`d4c quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import print_json, print_summary


def quantize(
    model: options.Model,
    pretrained: options.Pretrained = None,
    recipe: options.RecipeName = "w4a8",
    out: Annotated[Path | None, typer.Option(help="Folder to make; default ./MODEL-RECIPE.")] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Instead of synthesis: a folder of pictures to draw from, or noise, one_over_f, dead_leaves."
        ),
    ] = None,
    prompts: options.Prompts = None,
    size_budget: Annotated[
        int | None,
        typer.Option(
            parser=options.size,
            metavar="SIZE",
            help="As 80MB: give each layer 4 or 8 bits, so that model.safetensors fits.",
        ),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    overrides: options.Overrides = None,
    fresh: options.Fresh = False,
    keep_images: Annotated[bool, typer.Option("--keep-images", help="Leave them in OUT.work.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Turn a CLIP into a small, integer artifact folder; the same command continues an interrupted run.

    Under `torchrun … -m d4c quantize` several processes share the work.
    """
    options.use_threads(threads)
    from d4c import pipeline
    from d4c.ranks import join

    job = pipeline.prepare(
        model, recipe=recipe, out=out, pretrained=pretrained, images=images, prompts=prompts, device=device, seed=seed,
        overrides=overrides or (), size_budget=size_budget, fresh=fresh, keep_images=keep_images,
    )  # fmt: skip
    ranks = join(str(job.clip.logit_scale.device))
    ranks.agree(lambda: None)  # nobody begins before everyone has looked at what is there
    with progress() as report:
        summary = pipeline.run(job, report, ranks)
    if summary is None:
        return
    if as_json:
        print_json({**summary, "folder": str(job.out)})
    else:
        print_summary(summary, job.out)

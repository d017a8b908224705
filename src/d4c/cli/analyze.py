"""`d4c analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import print_json, print_table


def analyze(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder for analysis.json, pictures and report.html.")],
    images: Annotated[
        list[str],
        typer.Option(help="NAME=PATH: a folder of pictures, images.safetensors, or noise, one_over_f, dead_leaves."),
    ],
    reference: Annotated[
        str | None, typer.Option(help="The set to compare with; default: the one called real.")
    ] = None,
    calibrate: Annotated[str | None, typer.Option(help="The set to calibrate on; default: the first other.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="coverage, patches, map, sensitivity, text-mlp or transfer; default: all.")
    ] = None,
    recipe: options.RecipeName = "w4a8",
    overrides: options.Overrides = None,
    transfer_recipe: Annotated[
        list[str] | None, typer.Option(help="Recipes of the transfer tables; default: w4a8 and w4a4.")
    ] = None,
    bits: Annotated[list[int] | None, typer.Option(help="Bits of single layers; default: 8, 6, 4, 3.")] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Of each unit's learned rounding in text-mlp.")] = 200,
    limit: Annotated[int, typer.Option(min=4, help="Images of each set; all are cut to the shortest.")] = 128,
    judge_images: Annotated[int, typer.Option(min=2, help="Images of each held-out set that judge a layer.")] = 16,
    dataset: Annotated[str | None, typer.Option(help="A set of CLIP_benchmark's, for zero-shot figures.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the data set.")] = None,
    dataset_images: Annotated[int, typer.Option(min=2, help="How many of its images.")] = 2000,
    pretrained: options.Pretrained = None,
    prompts: options.Prompts = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Answer what readers of the paper ask, with pictures and one HTML page; an interrupted run is continued."""
    options.use_threads(threads)
    from d4c.experiments import analyze as study

    request = study.prepare(
        model, images=images, out=out, reference=reference, calibrate_on=calibrate, only=only or (), recipe=recipe,
        overrides=overrides or (), transfer_recipes=transfer_recipe or ("w4a8", "w4a4"), bits=bits or (8, 6, 4, 3),
        iterations=iterations, limit=limit, judge_images=judge_images, dataset=dataset, root=root,
        dataset_images=dataset_images, pretrained=pretrained, prompts=prompts, device=device, seed=seed,
    )  # fmt: skip
    with progress() as report:
        result = study.run(request, report)
    if as_json:
        print_json(result)
    else:
        rows = [[part, sentence] for part, sentence in study.sentences(result)]
        print_table(f"{result['about']['model']}: what was measured", ["part", ""], rows)
        print_table("files", ["", ""], [["page", str(out / "report.html")], ["figures", str(out / "analysis.json")]])

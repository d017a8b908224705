"""`d4c evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import print_json, print_table
from d4c.errors import UsageError


def evaluate(
    model: Annotated[str, typer.Argument(help="An artifact folder, an exported one, or a float model by name.")],
    pretrained: options.Pretrained = None,
    dataset: Annotated[str | None, typer.Option(help="A set of CLIP_benchmark's: wds/NAME, cifar10, …")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the data set.")] = None,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "test",
    recall_k: Annotated[str, typer.Option(help="For captions: how many to look at, for example 1,5,10.")] = "5",
    against: Annotated[
        str | None, typer.Option(help="The float model; default: what the folder was made from.")
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Say what was lost: on a data set if one is named, else on images that nothing was calibrated on."""
    ks = _numbers(recall_k)
    options.use_threads(threads)
    from d4c import pipeline

    with progress() as report:
        if dataset is None:
            result = pipeline.evaluate_without_data(model, against=against, device=device, report=report)
        else:
            result = pipeline.evaluate_on_data(
                model, dataset, root, pretrained=pretrained, against=against, device=device, report=report, split=split,
                recall_k=ks,
            )  # fmt: skip
    if as_json:
        print_json(result)
    elif dataset is None:
        _print_without_data(model, result)
    else:
        _print_on_data(result)


def _print_without_data(model: str, result: dict[str, Any]) -> None:
    columns = ["images", "centred error", "cosine p01", "image top-1", "text top-1", "both top-1", "mixed index"]
    rows = [
        [
            name,
            f"{s['image']['centred_error']:.4f}",
            f"{s['image']['cosine_p01']:.4f}",
            *(f"{s[key]['all']:.1%}" for key in ("image_top1", "text_top1", "top1", "mixed_index")),
        ]
        for name, s in result["sets"].items()
    ]
    text = result["text"]
    rows.append(["(texts)", f"{text['centred_error']:.4f}", f"{text['cosine_p01']:.4f}", "", "", "", ""])
    print_table(f"{model} against its float model", columns, rows)


def _print_on_data(result: dict[str, Any]) -> None:
    records = result["results"]
    keys = list(records[0]["metrics"])
    rows = [[key, *(f"{record['metrics'][key]:.2%}" for record in records)] for key in keys]
    print_table(records[0]["dataset"], ["", *(record["model"] for record in records)], rows)
    if "paired" in result:
        p = result["paired"]
        changed = "changed predictions" if "changed_predictions" in p else "changed hits"
        rows = [
            [
                key,
                f"{p[f'{key}_difference']:+.2%}",
                f"{p[f'{key}_standard_error']:.2%}",
                f"{p.get('changed_predictions', p.get(f'{key}_changed_hits')):.2%}",
            ]
            for key in keys
            if f"{key}_difference" in p
        ]
        print_table("against float, on the same images", ["", "difference", "paired standard error", changed], rows)


def _numbers(text: str) -> list[int]:
    """Whole numbers between commas, each once, in order."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise UsageError(f"--recall-k takes whole numbers from 1 on, for example 1,5,10; not '{text}'")
    return numbers

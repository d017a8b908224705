"""`d4c compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import print_json


def compare(
    grid: Annotated[Path, typer.Argument(help="TOML file: dataset, seeds, [[run]] with models, recipes, methods.")],
    root: Annotated[Path, typer.Option(help="Folder where the data set is.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default ./GRID.")] = None,
    real: Annotated[Path | None, typer.Option(help="Folder of pictures for the method `real`.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, each in a process of its own.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads of each process.")] = 1,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Quantize and measure models x methods x recipes x seeds; the same command continues, and skips what is done."""
    from d4c.artifact.work import appearing_whole
    from d4c.experiments import compare as study
    from d4c.experiments import tables
    from d4c.experiments.cells import Place
    from d4c.experiments.grid import read_grid
    from d4c.pipeline.places import check_writable

    plan = read_grid(grid)
    folder = out or Path(plan.name)
    check_writable(folder)
    with progress() as report:
        results = study.run(plan, Place(folder, root, real, device), jobs=jobs, threads=threads, report=report)
    rows = tables.rows_of(results)
    figures, text = tables.as_json(rows, results), tables.markdown(rows, results)
    for name, content in (("table.md", text), ("table.json", json.dumps(figures, indent=1) + "\n")):
        with appearing_whole(folder / name) as path:
            path.write_text(content, encoding="utf-8")
    if rows:
        tables.plot(rows, folder / "losses.png")
    if as_json:
        print_json(figures)
    else:
        typer.echo(text, nl=False)

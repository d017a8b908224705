"""`d4c compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import print_json
from d4c.errors import UsageError


def compare(
    grid: Annotated[Path, typer.Argument(help="TOML file: dataset, seeds, [[run]] with models, recipes, methods.")],
    root: Annotated[Path, typer.Option(help="Folder where the data set is.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default ./GRID.")] = None,
    real: Annotated[Path | None, typer.Option(help="Folder of pictures for the method `real`.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time, each in a process; default 1.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads of each process.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Run cells as tasks of a Ray cluster.")] = False,
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

    if ray and jobs is not None:
        raise UsageError("--jobs is for processes of this machine; with --ray, --threads says how many cells fit")
    tables.check_installed()
    plan = read_grid(grid)
    folder = out or Path(plan.name)
    check_writable(folder)
    place = Place(folder.resolve(), root.resolve(), real and real.resolve(), device)
    with (
        study.workers(jobs=jobs or 1, threads=threads, ray=ray, gpu=device != "cpu") as executor,
        progress() as report,
    ):
        results = study.run(plan, place, executor, threads=threads, report=report)
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

"""`d4c bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import print_json, print_table


def bench(
    folders: Annotated[list[Path], typer.Argument(help="An artifact, or exported folders to be measured as they are.")],
    against: Annotated[
        str | None, typer.Option(help="The float model; default: what the artifact was made from.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for figures and plot; default ./FOLDER-bench.")] = None,
    batches: Annotated[str, typer.Option(help="Sizes of batches.")] = "1,8",
    threads: Annotated[str, typer.Option(help="Numbers of threads; 0 takes all.")] = "1,0",
    rounds: Annotated[int, typer.Option(min=1, help="In each of which every variant is timed once.")] = 15,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Of an artifact: fp32, int8, int4, static, static-linear, dynamic, openvino-fp32, openvino-int8, "
            "openvino-int4; default: all that are possible here."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Pictures to calibrate onnxruntime's quantizer on, instead of the artifact's, which are there after "
            "`d4c quantize --keep-images`; else synthetic ones are made."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure speed, memory, size and error beside float, onnxruntime's own quantizers and OpenVINO.

    Graphs stay in OUT.work; those of onnxruntime's quantizers are not made again.
    """
    from d4c.experiments.bench import report as reports
    from d4c.experiments.bench import request, study

    asked = request.prepare(
        folders, out=out, batches=batches, threads=threads, rounds=rounds, against=against, images=images,
        variants=variants,
    )  # fmt: skip
    with progress() as report:
        result = study.run(asked, report)
    if as_json:
        print_json(result)
        return
    for table in reports.tables(result):
        print_table(table.title, table.columns, table.rows)
    for note in reports.notes(result):
        typer.echo(note)
    typer.echo(f"files: {asked.out / 'bench.json'}, bench.md, bench.png; graphs: {asked.work_folder}")

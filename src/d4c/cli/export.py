"""`d4c export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d4c.artifact.exported import EXPORTED, Exported, Storage
from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import megabytes, print_json, print_table
from d4c.cli.verify import demand, print_verification, verification_json
from d4c.errors import UnknownNameError

if TYPE_CHECKING:
    from d4c.pipeline import Verification

STORAGES: dict[str, Storage] = {"int8": "int8", "int4": "int4"}


def export(
    model: Annotated[str, typer.Argument(help="An artifact folder, or a float model by name.")],
    layout: Annotated[
        str, typer.Option(help="Who reads it: onnx, openvino, huggingface, immich, fastembed or open_clip.")
    ] = "onnx",
    pretrained: options.Pretrained = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make; default MODEL-LAYOUT.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="How weights lie in the graphs, int8 or int4; default: what the layout prefers.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace an earlier export.")] = False,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Run `d4c verify` on what was written.")] = True,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Write an artifact, or a float model, as another program reads it: graphs, preprocessing, tokenizer, card."""
    if storage is not None and storage not in STORAGES:
        raise UnknownNameError("storage", storage, STORAGES)
    options.use_threads(threads)
    from d4c import pipeline

    exported, folder = pipeline.export_model(
        model, layout, pretrained=pretrained, out=out, storage=STORAGES[storage] if storage else None, fresh=fresh
    )
    outcome = None
    if check and exported.runtime != "open_clip":  # which has no graphs
        with progress() as report:
            outcome = pipeline.verify(folder, None, threads, report)
    _print(exported, folder, outcome, as_json=as_json)
    if outcome is not None:
        demand(outcome, folder)


def _print(exported: Exported, folder: Path, outcome: Verification | None, *, as_json: bool) -> None:
    sizes = {name: (folder / name).stat().st_size for name in [*exported.sha256, EXPORTED]}
    if as_json:
        verified = {} if outcome is None else {"verify": verification_json(outcome)}
        print_json({"folder": str(folder), "files": sizes, EXPORTED: exported.to_dict(), **verified})
        return
    print_table(str(folder), ["file", "size"], [[name, megabytes(size)] for name, size in sizes.items()])
    if outcome is not None:
        print_verification(outcome, folder)
    typer.echo(f"Next: {_next(exported, folder)}")


def _next(exported: Exported, folder: Path) -> str:
    if exported.runtime == "open_clip":
        return f"open_clip.create_model_from_pretrained('local-dir:{folder}')"
    return f"d4c classify {folder} PICTURE dog cat"

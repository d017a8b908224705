"""`d4c export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d4c.artifact.exported import EXPORTED, Exported, Storage
from d4c.cli import options
from d4c.cli.tables import megabytes, print_json, print_table
from d4c.errors import UnknownNameError

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
    as_json: options.AsJson = False,
) -> None:
    """Write an artifact, or a float model, as another program reads it: graphs, preprocessing, tokenizer, card."""
    if storage is not None and storage not in STORAGES:
        raise UnknownNameError("storage", storage, STORAGES)
    from d4c import pipeline

    exported, folder = pipeline.export_model(
        model, layout, pretrained=pretrained, out=out, storage=STORAGES[storage] if storage else None, fresh=fresh
    )
    sizes = {name: (folder / name).stat().st_size for name in [*exported.sha256, EXPORTED]}
    if as_json:
        print_json({"folder": str(folder), "files": sizes, EXPORTED: exported.to_dict()})
        return
    print_table(str(folder), ["file", "size"], [[name, megabytes(size)] for name, size in sizes.items()])
    typer.echo(f"Next: {_next(exported, folder)}")


def _next(exported: Exported, folder: Path) -> str:
    if exported.runtime == "open_clip":
        return f"open_clip.create_model_from_pretrained('local-dir:{folder}')"
    return f"d4c classify {folder} PICTURE 'a label' 'another label'"

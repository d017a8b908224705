"""A source and a layout to a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d4c.artifact.exported import EXPORTED, Exported, Storage
from d4c.artifact.folder import file_sha256
from d4c.artifact.work import check_named
from d4c.errors import UsageError
from d4c.export.card import export_card
from d4c.export.layouts import Layout, Towers, find_layout
from d4c.export.source import Source

TEMPLATE = "a photo of a {c}."


def run(
    source: Source,
    layout: str,
    out: Path,
    *,
    storage: Storage | None = None,
    figures: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> Exported:
    """Write a source in a layout.

    Args:
        storage: how weights lie in graphs, "int8" or "int4"; by default what the layout prefers.
        figures: report.json of the artifact, for the card; None for a float model.
        fresh: replace what an earlier export left in `out`.

    Returns:
        what d4c.json says.

    Raises:
        UnknownNameError: there is no such layout.
        UsageError: the source has no such storage, or `out` is not to be replaced.
        UnsupportedModelError: the layout's consumer has no such model.
        ExportError: a graph cannot be made.
        MissingExtraError: what writes it is not installed.
    """
    chosen = find_layout(layout)
    storages = choose_storages(source, chosen, storage)
    chosen.check_installed()
    check_place(out, fresh=fresh)
    staging = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        source.preprocess.save(staging)
        source.tokenizer.save(staging)
        towers = chosen.write(source, staging, storages)
        card = export_card(chosen, source, _describe(source, chosen, towers, {}), figures)
        (staging / "README.md").write_text(card, encoding="utf-8")
        exported = _describe(source, chosen, towers, _checksums(staging))
        (staging / EXPORTED).write_text(json.dumps(exported.to_dict(), indent=1) + "\n", encoding="utf-8")
        _put(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return exported


def choose_storages(source: Source, layout: Layout, wanted: Storage | None) -> tuple[Storage, ...]:
    """How weights may lie in this source's graphs, the plainest first.

    Raises:
        UsageError: not as wanted.
    """
    if layout.float_weights or not source.weights:
        possible: tuple[Storage, ...] = ("float",)
    else:
        possible = ("int8", "int4") if source.has_int4 else ("int8",)
    if wanted is None:
        return possible
    if wanted not in possible:
        about = f"{source.folder or source.name} in the layout {layout.name}"
        raise UsageError(f"--storage {wanted} is not possible for {about}; possible: {', '.join(possible)}")
    return (wanted,)


def check_place(out: Path, *, fresh: bool) -> None:
    """Raise `UsageError` unless `out` is free, or an earlier export that may be replaced."""
    check_named(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / EXPORTED).is_file():
        raise UsageError(f"{out} exists and is no exported folder; name another place with --out")
    if not fresh:
        raise UsageError(f"{out} exists; --fresh replaces it, --out names another place")


def _describe(source: Source, layout: Layout, towers: Towers, sha256: Mapping[str, str]) -> Exported:
    return Exported(
        layout=layout.name,
        runtime=layout.runtime,
        image=towers.image,
        text=towers.text,
        id_type=layout.id_type,
        fixed_length=towers.fixed_length,
        normalized=layout.normalized,
        embed_dim=source.config.embed_dim,
        logit_scale=source.logit_scale,
        logit_bias=source.logit_bias,
        template=TEMPLATE,
        source=source.name,
        fingerprint=source.fingerprint,
        recipe=source.recipe,
        content_sha256=source.content_sha256,
        artifact=None if source.folder is None else str(Path(source.folder).absolute()),
        sha256=sha256,
    )


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _put(staging: Path, out: Path) -> None:
    """Give the folder its name; what had it before goes last."""
    if not out.exists():
        staging.rename(out)
        return
    old = staging.with_name(f"{staging.name}.old")
    out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        old.rename(out)
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old)

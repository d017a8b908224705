"""What a `d4c bench` command asks for, checked before any work."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d4c.artifact.exported import EXPORTED
from d4c.artifact.folder import MANIFEST
from d4c.artifact.work import check_named
from d4c.errors import MissingExtraError, UsageError
from d4c.experiments.bench.run import Plan
from d4c.experiments.bench.session import require
from d4c.pipeline.places import check_writable, work_folder_of


@dataclass(frozen=True)
class Request:
    """A checked command.

    Args:
        folders: one artifact, or exported folders; is_artifact: which of the two.
        against: the float model, or None for what the artifact was made from; images: pictures to calibrate rivals on.
        variants: by name, or None for all that are possible.
    """

    folders: tuple[Path, ...]
    is_artifact: bool
    plan: Plan
    out: Path
    against: str | None
    images: Path | None
    variants: tuple[str, ...] | None

    @property
    def work_folder(self) -> Path:
        """Where graphs that were made lie."""
        return work_folder_of(self.out)


def prepare(
    folders: Sequence[Path],
    *,
    out: Path | None,
    batches: str,
    threads: str,
    rounds: int,
    against: str | None,
    images: Path | None,
    variants: str | None,
) -> Request:
    """Check a command.

    Args:
        batches, threads, variants: as typed, with commas.

    Raises:
        UsageError: folders that cannot be measured together, or numbers that make no sense.
        MissingExtraError: onnxruntime or matplotlib is not installed.
    """
    plan = Plan(_counts(batches, "--batches", 1), _counts(threads, "--threads", 0), rounds)
    is_artifact = _are_artifacts(folders)
    if is_artifact and len(folders) > 1:
        raise UsageError("name one artifact, or several exported folders")
    if not is_artifact and (variants or images):
        raise UsageError("exported folders are measured as they are; --variants and --images are for artifacts")
    if images is not None and not images.is_dir():
        raise UsageError(f"no such folder: {images}")
    folder = out or Path(f"{folders[0].resolve().name}-bench")
    check_named(folder)
    check_writable(folder)
    if is_artifact:
        require("onnxruntime")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("plots", "drawing the plot")
    chosen = tuple(name.strip() for name in variants.split(",")) if variants else None
    return Request(tuple(folders), is_artifact, plan, folder, against, images, chosen)


def _counts(text: str, option: str, least: int) -> tuple[int, ...]:
    try:
        counts = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        counts = ()
    if not counts or min(counts) < least:
        raise UsageError(f"{option} {text}: give whole numbers from {least}, with commas between them")
    return counts


def _are_artifacts(folders: Sequence[Path]) -> bool:
    """Whether all are artifacts, not exported folders."""
    kinds = set()
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no such folder: {folder}")
        if not (folder / MANIFEST).exists() and not (folder / EXPORTED).exists():
            raise UsageError(f"{folder}: neither an artifact ({MANIFEST}) nor an exported folder ({EXPORTED})")
        kinds.add((folder / MANIFEST).exists())
    if len(kinds) > 1:
        raise UsageError("name one artifact, or several exported folders, not both")
    return kinds.pop()

"""What an artifact or an exported folder came from: its float model, and the prompts of its calibration."""

from __future__ import annotations

import logging
from pathlib import Path

from d4c.artifact import read_exported, read_manifest
from d4c.artifact.exported import EXPORTED, Exported
from d4c.errors import ArtifactError, UsageError
from d4c.models import Clip, load
from d4c.pipeline.basis import default_bank, split_bank
from d4c.pipeline.places import resolve_device
from d4c.prompts import PromptBank, parse_prompts
from d4c.recipes import load_recipe

logger = logging.getLogger(__name__)


def float_model(folder: Path, against: str | None, device: str) -> Clip:
    """Load the float model of an artifact or exported folder.

    Args:
        against: its name, where the folder's own is not the one that it has here.

    Raises:
        UsageError: it is another model.
    """
    if (folder / EXPORTED).is_file():
        exported = read_exported(folder)
        source, fingerprint = exported.source, exported.fingerprint
    else:
        manifest = read_manifest(folder)
        source, fingerprint = manifest["source"], manifest["fingerprint"]
    clip = load(against or source).to(resolve_device(device))
    if clip.fingerprint != fingerprint:
        raise UsageError(f"{clip.source} is not the model that {folder} was made from; name it with --against")
    return clip


def prompts_of(folder: Path) -> tuple[PromptBank, PromptBank]:
    """What a folder's calibration images were drawn towards, and names for judging that are not in it.

    An exported folder does not hold them. They are those of the artifact that it was translated from, where that still
    lies where it lay; else those that the float model has by default.
    """
    if not (folder / EXPORTED).is_file():
        return _of_artifact(folder)
    exported = read_exported(folder)
    if exported.artifact is not None:
        if _has_content(Path(exported.artifact), exported):
            return _of_artifact(Path(exported.artifact))
        logger.warning(
            "the artifact %s is gone or another one: what judges are the model's own prompts, "
            "which may not be those that it was calibrated with", exported.artifact
        )  # fmt: skip
    recipe = load_recipe("w4a8")  # all shipped recipes that can be exported choose their prompts alike
    return split_bank(default_bank(exported.source, recipe), recipe)


def _of_artifact(folder: Path) -> tuple[PromptBank, PromptBank]:
    prompts = read_manifest(folder)["prompts"]
    return parse_prompts(prompts["fitted"], str(folder)), parse_prompts(prompts["held_out"], str(folder))


def _has_content(artifact: Path, exported: Exported) -> bool:
    try:
        return bool(read_manifest(artifact).get("content_sha256") == exported.content_sha256)
    except ArtifactError:
        return False

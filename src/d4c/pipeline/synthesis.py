"""Calibration images on their own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from d4c import synthesize
from d4c.artifact import Work
from d4c.artifact.work import Report, check_named
from d4c.errors import UsageError
from d4c.images import ImageSet, contact_sheet
from d4c.models import load
from d4c.pipeline.basis import default_bank
from d4c.pipeline.places import (
    KEPT_IMAGES,
    check_pieces,
    check_writable,
    remove_pieces,
    resolve_device,
    work_folder_of,
)
from d4c.pipeline.quantization import environment
from d4c.pipeline.stages import Stages
from d4c.prompts import read_prompts
from d4c.recipes import load_recipe


def synthesize_to_folder(
    model: str,
    *,
    out: Path,
    recipe: str,
    pretrained: str | None,
    prompts: Path | None,
    device: str,
    seed: int,
    overrides: Sequence[str],
    fresh: bool,
    report: Report,
) -> ImageSet:
    """Make a recipe's images into `out`: images.safetensors and contact_sheet.png, resumable.

    Raises:
        D4CError: see `d4c.errors`; `out` exists and `fresh` is not set.
    """
    resolved = load_recipe(recipe, overrides)
    target = resolve_device(device)
    check_named(out)
    check_writable(out)
    bank = read_prompts(prompts) if prompts is not None else None
    check_pieces(work_folder_of(out))
    ours = out.exists() and {path.name for path in out.iterdir()} <= {KEPT_IMAGES, "contact_sheet.png"}
    if out.exists() and any(out.iterdir()) and not (fresh and ours):
        raise UsageError(f"{out} exists; --fresh replaces images made earlier, --out names another place")
    clip = load(model, pretrained).to(target)
    bank = bank or default_bank(model, resolved)
    work = Work(work_folder_of(out), report)
    assert work.folder is not None
    if fresh:
        shutil.rmtree(work.folder, ignore_errors=True)
    images = Stages(work, environment(clip)).run(
        "synthesize",
        [resolved.synthesize, bank.prompts, seed],
        lambda pieces: synthesize.run(clip, bank.prompts, resolved.synthesize, seed=seed, work=pieces),
    )
    staging = work.folder / "images"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    images.save(staging / KEPT_IMAGES)
    contact_sheet(images, clip.preprocess).save(staging / "contact_sheet.png")
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    remove_pieces(work.folder)
    return images

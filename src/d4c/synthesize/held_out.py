"""Images that judge: never calibrated on, made once for each model and kept in the user's cache."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError

from d4c.artifact import Work
from d4c.artifact.work import appearing_whole
from d4c.errors import ImageFileError
from d4c.images import ImageSet, procedural_set
from d4c.models import Clip
from d4c.ranks import ALONE, Ranks
from d4c.recipes import Synthesize
from d4c.synthesize.optimize import run

HELD_OUT_SETS = ("synthetic", "ten_steps", "one_over_f", "dead_leaves")
NUM_IMAGES, SEED = 32, 424_242
# Cheap on purpose: one view a step, few steps, most of them on fewer tokens.
FAST = Synthesize(
    images=NUM_IMAGES,
    steps=20,
    batch=16,
    learning_rate=0.05,
    start="one_over_f",
    structural_contrast=False,
    noise=0.0,
    parametrization="pixels",
    coarse_to_fine=True,
)
HASTY = dataclasses.replace(FAST, steps=10)


def held_out_sets(
    clip: Clip, prompts: Sequence[str], cache: Path | None, work: Work, ranks: Ranks = ALONE
) -> dict[str, ImageSet]:
    """Four sets of 32, by the names of `HELD_OUT_SETS`.

    Args:
        prompts: texts that calibration images were not drawn towards.
        cache: folder for the two optimised sets, found again by model, prompts, threads, device and versions; None
            keeps none.
    """
    made = {
        "synthetic": _cached(clip, prompts, FAST, cache, work, ranks),
        "ten_steps": _cached(clip, prompts, HASTY, cache, work, ranks),
    }
    for i, name in enumerate(HELD_OUT_SETS[2:]):
        made[name] = procedural_set(name, NUM_IMAGES, clip.preprocess, SEED + i)
    return made


def _cached(
    clip: Clip, prompts: Sequence[str], config: Synthesize, cache: Path | None, work: Work, ranks: Ranks
) -> ImageSet:
    settings = [
        clip.fingerprint, dataclasses.asdict(clip.preprocess), list(prompts), dataclasses.asdict(config), SEED,
        torch.get_num_threads(), clip.logit_scale.device.type, torch.__version__, version("d4c"),
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
    path = None if cache is None else cache / "held-out" / f"{key}.safetensors"
    kept = ranks.agree(lambda: _recalled(path))
    if kept is not None:
        return kept
    images = run(clip, prompts, config, seed=SEED, work=work.within(f"held-out-{config.steps}"), ranks=ranks)
    if path is not None and ranks.first:
        # a cache that cannot be written is no reason to fail
        with contextlib.suppress(OSError, SafetensorError), appearing_whole(path) as temporary:
            images.save(temporary)
    return images


def _recalled(path: Path | None) -> ImageSet | None:
    if path is None or not path.exists():
        return None
    try:
        return ImageSet.load(path)
    except ImageFileError:
        path.unlink()
        return None

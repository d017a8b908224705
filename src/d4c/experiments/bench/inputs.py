"""What graphs are calibrated, timed and judged with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d4c import synthesize
from d4c.artifact import Artifact, Work, user_cache
from d4c.artifact.work import Report
from d4c.images import ImageSet, load_image_folder, procedural_set
from d4c.inputs import Tokenizer
from d4c.models import Clip
from d4c.pipeline.basis import HELD_TEXTS, calibration_tokens, held_out_tokens
from d4c.pipeline.places import KEPT_IMAGES, work_folder_of
from d4c.prompts import PromptBank, calibration_texts, load_prompts, load_templates, parse_prompts
from d4c.recipes import load_recipe
from d4c.synthesize.held_out import NUM_IMAGES, SEED

JUDGE_BATCH = 8
PROCEDURAL = ("one_over_f", "dead_leaves")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Calibration:
    """What a rival is calibrated with.

    Args:
        images: in batches of pixels; texts: one by one, as long as they are; source: what the images are.
    """

    images: Sequence[NDArray[np.float32]]
    texts: Sequence[NDArray[np.int64]]
    source: str

    def of(self, tower: str) -> Sequence[NDArray[Any]]:
        """What one tower is calibrated with."""
        return self.images if tower == "image" else self.texts

    def digest(self, tower: str) -> str:
        """SHA-256 of it."""
        sha = hashlib.sha256()
        for x in self.of(tower):
            sha.update(f"{x.shape}".encode() + x.tobytes())
        return sha.hexdigest()


@dataclass(frozen=True)
class Judges:
    """What decides on errors, and what is timed.

    Args:
        images: sets by name, pixels [image, 3, size, size]; ids: [text, token], padded to the context.
        tokenizer: that made the ids; fixed_length: whether texts keep all their padding.
    """

    images: Mapping[str, NDArray[np.float32]]
    ids: NDArray[np.int64]
    tokenizer: Tokenizer
    fixed_length: bool

    def sets(self, tower: str) -> Mapping[str, NDArray[Any]]:
        """Sets by name."""
        return self.images if tower == "image" else {"texts": self.ids}

    def batches(self, tower: str) -> dict[str, NDArray[Any]]:
        """Every set in batches, called "SET NUMBER"; texts are as long as the longest of their batch."""
        found = {}
        for name, rows in self.sets(tower).items():
            for i in range(0, len(rows), JUDGE_BATCH):
                found[f"{name} {i:06d}"] = self._cut(tower, rows[i : i + JUDGE_BATCH])
        return found

    def timed(self, tower: str, batch: int) -> NDArray[Any]:
        """The first inputs, repeated where there are too few."""
        rows = next(iter(self.sets(tower).values()))
        return self._cut(tower, rows[np.arange(batch) % len(rows)])

    def _cut(self, tower: str, rows: NDArray[Any]) -> NDArray[Any]:
        if tower == "image" or self.fixed_length:
            return rows
        return rows[:, : text_lengths(rows, self.tokenizer).max()]


def text_lengths(ids: NDArray[np.int64], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Tokens of each text up to its end token; ids: [text, token]."""
    lengths: NDArray[np.int64] = (ids == tokenizer.end_id).argmax(axis=1) + 1
    return lengths


def calibration_of(
    artifact: Artifact, clip: Clip, images: Path | None, fixed_length: bool, report: Report
) -> Calibration:
    """The images and texts that an artifact was calibrated with, as far as they are still there.

    Args:
        images: a folder of pictures to take instead.
        fixed_length: whether texts keep all their padding.
    """
    recipe = load_recipe(str(artifact.folder / "recipe.toml"))
    manifest = artifact.manifest
    bank = parse_prompts(manifest["prompts"]["fitted"], str(artifact.folder))
    kept = work_folder_of(artifact.folder.absolute()) / KEPT_IMAGES
    if images is not None:
        chosen = load_image_folder(images, clip.preprocess, recipe.synthesize.images, manifest["seed"])
        source = f"{len(chosen)} pictures of {images}"
    elif kept.exists():
        chosen = ImageSet.load(kept)
        source = f"the artifact's own {len(chosen)} images"
    else:
        chosen = _held_out(artifact, clip, report)["synthetic"]
        source = f"{len(chosen)} synthetic images made anew, since the artifact's own were not kept"
    templates = load_templates(recipe.calibrate.templates)
    ids = calibration_tokens(clip, bank, templates, recipe.calibrate.texts, manifest["seed"]).numpy()
    lengths = np.full(len(ids), ids.shape[1]) if fixed_length else text_lengths(ids, clip.tokenizer)
    texts = [row[None, :length] for row, length in zip(ids, lengths, strict=True)]
    return Calibration([part.numpy() for part in chosen.pixels.split(JUDGE_BATCH)], texts, source)


def judges_of(artifact: Artifact, clip: Clip, calibration: Calibration, fixed_length: bool, report: Report) -> Judges:
    """Held-out images and texts of an artifact, without a set that a rival was calibrated on."""
    sets = {name: s.pixels.numpy() for name, s in _held_out(artifact, clip, report).items()}
    first = calibration.images[0]
    sets = {name: pixels for name, pixels in sets.items() if not np.array_equal(pixels[: len(first)], first)}
    held_bank = parse_prompts(artifact.manifest["prompts"]["held_out"], str(artifact.folder))
    return Judges(sets, held_out_tokens(clip, held_bank).numpy(), clip.tokenizer, fixed_length)


def judges_without_model(preprocess: Any, tokenizer: Tokenizer, fixed_length: bool) -> Judges:
    """Images that no model made, and texts of our own bank."""
    images = {
        name: procedural_set(name, NUM_IMAGES, preprocess, SEED + i).pixels.numpy() for i, name in enumerate(PROCEDURAL)
    }
    texts = calibration_texts(load_prompts("own"), load_templates("generic"), HELD_TEXTS, 0)
    return Judges(images, tokenizer(texts), tokenizer, fixed_length)


def _held_out(artifact: Artifact, clip: Clip, report: Report) -> dict[str, ImageSet]:
    torch.set_num_threads(artifact.manifest["threads"])  # equal images need equal threads, and then lie in the cache
    held_bank: PromptBank = parse_prompts(artifact.manifest["prompts"]["held_out"], str(artifact.folder))
    return synthesize.held_out_sets(clip, held_bank.prompts, user_cache(), Work(None, report))

"""What is to be analysed: everything looked up and checked before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from d4c import synthesize
from d4c.errors import MissingExtraError, UnknownNameError, UsageError
from d4c.experiments.analyze.cells import FOLDER
from d4c.experiments.analyze.zero_shot import LabelledImages, read_labelled
from d4c.images import PROCEDURES, ImageSet, load_image_folder
from d4c.models import Clip, load
from d4c.pipeline.basis import default_bank, split_bank
from d4c.pipeline.places import KEPT_IMAGES, check_writable, resolve_device
from d4c.prompts import PromptBank, read_prompts
from d4c.recipes import Recipe, load_recipe

PARTS = ("coverage", "patches", "map", "sensitivity", "text-mlp", "transfer")
CALIBRATED_PARTS = {"sensitivity", "text-mlp"}
LEAST_IMAGES = 4


@dataclass(frozen=True)
class Request:
    """One analysis.

    Args:
        bank: all prompts; fitted_bank and held_bank: its two halves, as quantization splits it.
        sets: image sets by name, all of one length; reference: the one that the others are compared with, or None.
        calibrate_on: the set that sensitivity calibrates with; "" where no part needs one.
        transfer_recipes: by name; bits: of the sensitivity's layers; iterations: of each unit of the text MLP's study.
        judge_images: how many of each set judge a layer; labelled: a data set for zero-shot figures, or None.
    """

    clip: Clip
    recipe: Recipe
    bank: PromptBank
    fitted_bank: PromptBank
    held_bank: PromptBank
    sets: Mapping[str, ImageSet]
    reference: str | None
    calibrate_on: str
    parts: tuple[str, ...]
    transfer_recipes: Mapping[str, Recipe]
    bits: tuple[int, ...]
    iterations: int
    judge_images: int
    labelled: LabelledImages | None
    out: Path
    seed: int


def prepare(
    model: str,
    *,
    images: Sequence[str],
    out: Path,
    reference: str | None = None,
    calibrate_on: str | None = None,
    only: Sequence[str] = (),
    recipe: str = "w4a8",
    overrides: Sequence[str] = (),
    transfer_recipes: Sequence[str] = ("w4a8", "w4a4"),
    bits: Sequence[int] = (8, 6, 4, 3),
    iterations: int = 200,
    limit: int = 128,
    judge_images: int = 16,
    dataset: str | None = None,
    root: Path | None = None,
    dataset_images: int = 2000,
    pretrained: str | None = None,
    prompts: Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Request:
    """Look everything up; what is wrong with a request shows here, and nothing is written.

    Args:
        images: `NAME=PATH`, PATH a folder of pictures, a safetensors file, a folder of `d4c synthesize`, or the name of
            a procedure.
        reference: a set's name; by default "real" where there is one.
        calibrate_on: a set's name; by default the first that is not the reference.
        only: parts to do; all without it.
        limit: images of each set at most; all sets are cut to the shortest.

    Raises:
        D4CError: see `d4c.errors`.
    """
    parts = _parts(only)
    _check_extras()
    resolved = load_recipe(recipe, overrides)
    others = {name: load_recipe(name) for name in transfer_recipes}
    if dataset is not None and root is None:
        raise UsageError(f"--dataset {dataset} needs --root, the folder where the data is")
    paths = _named_paths(images)
    reference = _reference(reference, paths)
    calibrate_on = _calibration_set(calibrate_on, paths, reference, parts)
    if wrong := [b for b in bits if not 2 <= b <= 8]:
        raise UsageError(f"--bits {wrong[0]}: need 2 to 8")
    target = resolve_device(device)
    check_writable(out)
    _check_ours(out)
    bank = read_prompts(prompts) if prompts is not None else default_bank(model, resolved)
    clip = load(model, pretrained).to(target)
    fitted_bank, held_bank = split_bank(bank, resolved)
    sets = _same_length({name: read_set(path, clip, limit, seed) for name, path in paths.items()}, limit)
    labelled = read_labelled(dataset, root, clip, dataset_images) if dataset is not None and root is not None else None
    return Request(
        clip, resolved, bank, fitted_bank, held_bank, sets, reference, calibrate_on, parts, others, tuple(bits),
        iterations, judge_images, labelled, out, seed,
    )  # fmt: skip


def read_set(path: str, clip: Clip, limit: int, seed: int) -> ImageSet:
    """Images from a procedure, a file, or a folder.

    Raises:
        UsageError: there is nothing at the path, or its images have another size than the model's.
        ImageFileError: it cannot be read.
    """
    place = Path(path)
    if path in PROCEDURES:
        return synthesize.procedural(path, limit, clip, seed, valid=path != "noise")
    if (place / KEPT_IMAGES).is_file():
        place = place / KEPT_IMAGES
    if place.is_dir():
        return load_image_folder(place, clip.preprocess, limit)
    if not place.is_file():
        raise UsageError(f"{path}: neither a folder, a file, nor one of {', '.join(PROCEDURES)}")
    images = ImageSet.load(place)
    if images.pixels.shape[-1] != clip.preprocess.size:
        raise UsageError(f"{path}: images of {images.pixels.shape[-1]} pixels, the model takes {clip.preprocess.size}")
    return images


def _same_length(sets: Mapping[str, ImageSet], limit: int) -> dict[str, ImageSet]:
    shortest = min(limit, *(len(s) for s in sets.values()))
    if shortest < LEAST_IMAGES:
        raise UsageError(f"need at least {LEAST_IMAGES} images in every set; one has {shortest}")
    return {name: images.take(slice(shortest)) for name, images in sets.items()}


def _parts(only: Sequence[str]) -> tuple[str, ...]:
    for part in only:
        if part not in PARTS:
            raise UnknownNameError("part", part, PARTS)
    return tuple(part for part in PARTS if not only or part in only)


def _named_paths(images: Sequence[str]) -> dict[str, str]:
    paths: dict[str, str] = {}
    for given in images:
        name, equals, path = given.partition("=")
        if not equals or not path or not re.fullmatch(r"[\w.-]+", name):
            raise UsageError(f"--images {given}: write NAME=PATH, as in real=pictures/")
        if name in paths:
            raise UsageError(f"--images {given}: there is a set called {name} already")
        paths[name] = path
    if not paths:
        raise UsageError("name at least one set: --images NAME=PATH")
    return paths


def _known_set(name: str, paths: Mapping[str, str]) -> str:
    if name not in paths:
        raise UnknownNameError("image set", name, paths)
    return name


def _reference(given: str | None, paths: Mapping[str, str]) -> str | None:
    if given in synthesize.HELD_OUT_SETS:
        raise UsageError(f"--reference {given}: a set that judges has this name; give it another")
    return _known_set(given, paths) if given else "real" if "real" in paths else None


def _calibration_set(given: str | None, paths: Mapping[str, str], reference: str | None, parts: Sequence[str]) -> str:
    if given:
        return _known_set(given, paths)
    free = [name for name in paths if name != reference]
    if not free and CALIBRATED_PARTS & set(parts):
        raise UsageError(
            f"{' and '.join(sorted(CALIBRATED_PARTS & set(parts)))}: name a set to calibrate on, --calibrate"
        )
    return free[0] if free else ""


def _check_extras() -> None:
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("plots", "an analysis") from error


def _check_ours(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier analysis."""
    for entry in out.iterdir() if out.is_dir() else ():
        ours = entry.name in (FOLDER, "analysis.json", "report.html") or entry.suffix in (".png", ".tmp")
        if not ours:
            raise UsageError(f"{entry} is no part of an analysis; name another place with --out")

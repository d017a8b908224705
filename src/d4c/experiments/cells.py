"""What one cell of a grid needs and gives: shared image sets and text towers, one quantized model, its figures."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import d4c
from d4c import calibrate, evaluate, reconstruct, synthesize
from d4c.artifact import Work, user_cache
from d4c.artifact.work import Report, appearing_whole
from d4c.errors import ImageFileError, RecipeError, UsageError
from d4c.experiments.grid import BASELINE, REAL, Cell, Grid
from d4c.images import ImageSet, load_image_folder, with_crops
from d4c.inputs import Encoder
from d4c.models import Clip, QuantizedClip, TorchEncoder, load, sites_of, wrap
from d4c.models.parts import TowerName
from d4c.models.resnet import ModifiedResNet
from d4c.pipeline.basis import calibration_tokens, default_bank, fold, held_out_tokens, split_bank
from d4c.pipeline.evaluation import embedding_cache
from d4c.pipeline.places import resolve_device
from d4c.pipeline.stages import hash_of, tensor_hash
from d4c.prompts import PromptBank, load_templates
from d4c.quantizers.ranges import Ranges
from d4c.quantizers.scheme import Scheme, resolve_scheme
from d4c.recipes import Recipe, Synthesize, dump_recipe

FORMAT_VERSION = 2  # of a cell's file; 2 has `score_error`


@dataclass(frozen=True)
class Place:
    """Where a grid is run.

    Args:
        out: folder of the results; root: where the data set is; real: folder of pictures for the method "real".
    """

    out: Path
    root: Path
    real: Path | None
    device: str


@dataclass(frozen=True)
class Setup:
    """A cell with everything looked up.

    Args:
        bank: what images are drawn towards; held_bank: names that judge; templates: of calibration texts.
    """

    cell: Cell
    clip: Clip
    recipe: Recipe
    scheme: Scheme
    bank: PromptBank
    held_bank: PromptBank
    templates: tuple[str, ...]
    task: evaluate.ImageTask
    place: Place

    @property
    def environment(self) -> list[Any]:
        """What every result depends on beside its settings."""
        clip = self.clip
        return [
            clip.fingerprint, clip.preprocess, self.bank.prompts, self.held_bank.prompts, self.cell.seed,
            torch.get_num_threads(), clip.logit_scale.device.type, torch.__version__, d4c.__version__,
        ]  # fmt: skip


def set_up(grid: Grid, cell: Cell, place: Place) -> Setup:
    """Look up what a cell needs.

    Raises:
        RecipeError: the model cannot have the method's objectives.
        UsageError: the method needs `--real`, and there is none, or the data set is not there or not classified.
    """
    recipe, clip = grid.recipe(cell), _load(cell.model, place.device)
    if cell.method == BASELINE:
        name = "bns" if isinstance(clip.image, ModifiedResNet) else "pse"
        recipe = grid.recipe(dataclasses.replace(cell, method=name))
    if cell.method == REAL and (place.real is None or not place.real.is_dir()):
        missing = "" if place.real is None else f"; there is none at {place.real}"
        raise UsageError(f"{cell.name}: method real needs --real, a folder of pictures{missing}")
    if cell.method != REAL:
        synthesize.check_objectives(clip, recipe.synthesize)
    bank, held_bank = split_bank(default_bank(cell.model, recipe), recipe)
    task = evaluate.load_task(grid.dataset, place.root, clip.preprocess)
    if not isinstance(task, evaluate.ImageTask):
        raise UsageError(f"{grid.dataset}: captions without classes; a grid is measured by classification")
    templates = load_templates(recipe.calibrate.templates)
    return Setup(cell, clip, recipe, resolve_scheme(recipe, sites_of(clip)), bank, held_bank, templates, task, place)


@functools.lru_cache(maxsize=2)  # a process walks through many cells of one model
def _load(model: str, device: str) -> Clip:
    return load(model).to(resolve_device(device))


def image_file(setup: Setup) -> Path:
    """Where the cell's synthesized images lie."""
    key = hash_of("images", setup.recipe.synthesize, *setup.environment)[:16]
    return setup.place.out / "images" / f"{setup.cell.model.replace('/', '-')}-{key}.safetensors"


def image_set(setup: Setup, report: Report) -> ImageSet:
    """The cell's calibration images; cells with equal settings share one set, made once."""
    config = setup.recipe.synthesize
    if setup.cell.method == REAL:
        assert setup.place.real is not None
        return load_image_folder(setup.place.real, setup.clip.preprocess, config.images, setup.cell.seed)
    path = image_file(setup)
    if path.exists():
        try:
            return ImageSet.load(path)
        except ImageFileError:
            path.unlink()
    work = Work(path.with_suffix(".work"), report)
    images = synthesize.run(setup.clip, setup.bank.prompts, config, seed=setup.cell.seed, work=work)
    with appearing_whole(path) as temporary:
        images.save(temporary)
    _remove(work)
    return images


@dataclass(frozen=True)
class Judges:
    """What nothing is fitted to: images, and texts [text, token]; ids: the texts that calibrate."""

    images: ImageSet
    texts: Tensor
    ids: Tensor


def judges(setup: Setup) -> Judges:
    """The held-out images and texts, and the calibration texts, of a cell."""
    held = synthesize.held_out_sets(setup.clip, setup.held_bank.prompts, user_cache(), Work())
    num = setup.recipe.calibrate.texts
    ids = calibration_tokens(setup.clip, setup.bank, setup.templates, num, setup.cell.seed)
    return Judges(held["synthetic"], held_out_tokens(setup.clip, setup.held_bank), ids)


def text_folder(setup: Setup) -> Path:
    """Where the text tower lies, with all that is made of it: nothing in it depends on calibration images."""
    calibration = dataclasses.replace(setup.recipe.calibrate, outliers=0.0)
    reconstruction = dataclasses.replace(setup.recipe.reconstruct, crops=0)
    recipe = dataclasses.replace(
        setup.recipe, synthesize=Synthesize(), calibrate=calibration, reconstruct=reconstruction
    )
    key = hash_of("text", dump_recipe(recipe), setup.templates, *setup.environment)[:16]
    return setup.place.out / "text" / f"{setup.cell.model.replace('/', '-')}-{key}"


def text_ranges(setup: Setup, folded: Clip, held: Judges, work: Work) -> Ranges:
    """Ranges of the text tower, made once for all methods of a seed."""
    assert work.folder is not None
    path = work.folder / "ranges.safetensors"
    if path.exists():
        return Ranges.from_tensors(load_file(path, device=str(folded.logit_scale.device)))
    ranges = calibrate.run(
        folded, held.images, held.ids, setup.scheme, setup.recipe.calibrate, towers=["text"], work=work
    )  # fmt: skip
    with appearing_whole(path) as temporary:
        save_file(ranges.to_tensors(), temporary)
    return ranges


def text_tower(setup: Setup, held: Judges, report: Report) -> tuple[QuantizedClip, dict[str, Any]]:
    """The model with its text tower calibrated and reconstructed, the image tower float, and figures of its units.

    A finished tower is kept beside its ranges: finding all its units again would cost more than the rest of a cell.
    """
    folded = fold(setup.clip, setup.recipe)
    folded = calibrate.fold(folded, held.images, held.ids, setup.scheme, setup.recipe.calibrate, towers=["text"])
    work = Work(text_folder(setup), report)
    ranges = text_ranges(setup, folded, held, work)
    path = text_folder(setup) / "finished.safetensors"
    if path.exists():
        return _finished_tower(setup, folded, ranges, path)
    quantized, about = _reconstruct(setup, "text", folded, held.images, held, ranges, work)
    with appearing_whole(path) as temporary:
        save_file(quantized.text.state_dict(), temporary, metadata={"reconstruction": json.dumps(about)})
    return quantized, about


def _finished_tower(setup: Setup, folded: Clip, ranges: Ranges, path: Path) -> tuple[QuantizedClip, dict[str, Any]]:
    quantized = wrap(folded, setup.scheme.of_tower("text"), ranges)
    with safe_open(path, framework="pt", device=str(folded.logit_scale.device)) as file:
        quantized.text.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        about: dict[str, Any] = json.loads(file.metadata()["reconstruction"])
    return quantized, about


def image_tower(setup: Setup, held: Judges, report: Report) -> tuple[QuantizedClip, dict[str, Any]]:
    """The same of the image tower, the text tower float."""
    folded, config = fold(setup.clip, setup.recipe), setup.recipe.calibrate
    images = calibrate.without_outliers(folded, image_set(setup, report), config.outliers)
    folded = calibrate.fold(folded, images, held.ids, setup.scheme, setup.recipe.calibrate, towers=["image"])
    key = hash_of("image", dump_recipe(setup.recipe), tensor_hash(images.pixels), *setup.environment)[:16]
    work = _cell_work(setup, report).within(key)
    ranges = calibrate.run(
        folded, images, held.ids, setup.scheme, setup.recipe.calibrate, towers=["image"], work=work
    )  # fmt: skip
    more = with_crops(images, setup.recipe.reconstruct.crops, setup.cell.seed)
    return _reconstruct(setup, "image", folded, more, held, ranges, work)


def _cell_work(setup: Setup, report: Report) -> Work:
    return Work(setup.place.out / "cells" / f"{setup.cell.name}.work", report)


def _reconstruct(
    setup: Setup, tower: TowerName, folded: Clip, images: ImageSet, held: Judges, ranges: Ranges, work: Work
) -> tuple[QuantizedClip, dict[str, Any]]:
    recipe = setup.recipe
    quantized = wrap(folded, setup.scheme.of_tower(tower), ranges)
    if recipe.reconstruct.method == "none":
        return quantized, {}
    quantized, units = reconstruct.run(
        folded, quantized, images, held.ids, held.images, held.texts, recipe.reconstruct,
        seed=setup.cell.seed, padding=recipe.calibrate.padding, towers=[tower], work=work,
    )  # fmt: skip
    return quantized, reconstruct.summarize(units)["by_weight_bits"]


def run_cell(grid: Grid, cell: Cell, place: Place, report: Report) -> dict[str, Any]:
    """Quantize and measure; a result that is there already with the same settings is read.

    Returns:
        for the `float` model, for `both` towers quantized and for the `image` tower alone: `acc1`, which images were
        right, "1" or "0" each, and `score_error`, the centred error of the images' scores for all classes against the
        float model's; `reconstruction` by tower and weight bits; `seconds`. A cell whose method the model cannot have
        gives `refused`, the reason.
    """
    path = place.out / "cells" / f"{cell.name}.json"
    try:
        setup = set_up(grid, cell, place)
    except RecipeError as error:
        return {"cell": dataclasses.asdict(cell), "refused": str(error)}
    settings = hash_of(
        "cell", FORMAT_VERSION, dump_recipe(setup.recipe), setup.templates, *_data(setup), cell.method,
        _pictures(setup), *setup.environment,
    )  # fmt: skip
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result.get("settings") == settings:
            return result
    started = time.monotonic()
    held = judges(setup)
    (text, about_text), (image, about_image) = text_tower(setup, held, report), image_tower(setup, held, report)
    predictions = _predict(setup, TorchEncoder(image), TorchEncoder(text), _cell_work(setup, report).within(settings))
    result = {
        "cell": dataclasses.asdict(cell),
        "settings": settings,
        "predictions": {name: _figures(p, predictions["float"]) for name, p in predictions.items()},
        "reconstruction": {"image": about_image, "text": about_text},
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    _write(path, result)
    _remove(_cell_work(setup, report))
    return result


def _predict(setup: Setup, image: Encoder, text: Encoder, work: Work) -> dict[str, evaluate.Prediction]:
    """Predictions of the float model, of both quantized towers, and of the quantized image tower with float texts.

    Cells that share a text tower share its classifier, which is most of an evaluation. `work` keeps the image tower's
    embeddings, so that it looks at the data set once.
    """
    plain, seen = TorchEncoder(setup.clip), evaluate.EmbeddingCache(work.folder)
    caches = {"float": embedding_cache(setup.clip), "both": seen, "image": seen}
    of_floats = evaluate.zero_shot_classifier(plain, setup.task, work.report, cache=caches["float"])
    of_texts = evaluate.zero_shot_classifier(
        text, setup.task, work.report, cache=evaluate.EmbeddingCache(text_folder(setup) / "embeddings")
    )
    encoders = {"float": plain, "both": image, "image": image}
    classifiers = {"float": of_floats, "both": of_texts, "image": of_floats}
    return evaluate.predict(encoders, classifiers, setup.task, work.report, caches=caches)


def _data(setup: Setup) -> list[Any]:
    """What tells one data set from another without reading its images."""
    task = setup.task
    return [task.name, str(setup.place.root.resolve()), task.size, task.classnames, task.templates]


def _pictures(setup: Setup) -> list[Any]:
    """What tells one folder of real pictures from another, where the cell takes them."""
    if setup.cell.method != REAL or setup.place.real is None:
        return []
    files = sorted(path for path in setup.place.real.rglob("*") if path.is_file())
    return [(path.name, path.stat().st_size) for path in files]


def _figures(prediction: evaluate.Prediction, plain: evaluate.Prediction) -> dict[str, Any]:
    right = prediction.logits.argmax(axis=1) == prediction.labels
    return {
        "acc1": prediction.metrics["acc1"],
        "right": "".join(np.where(right, "1", "0")),
        "score_error": evaluate.centred_error(plain.logits, prediction.logits),
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    with appearing_whole(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _remove(work: Work) -> None:
    """Forget the pieces of what is finished."""
    if work.folder is not None:
        shutil.rmtree(work.folder, ignore_errors=True)

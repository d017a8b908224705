"""The order of an analysis: every part from its cells, then pictures, answers and the page."""

from __future__ import annotations

import json
import platform
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import d4c
from d4c import synthesize
from d4c.artifact import Work, user_cache
from d4c.artifact.work import Report
from d4c.evaluate.agreement import unit
from d4c.experiments.analyze import coverage, feature_map, page, patches, plots, sensitivity, text_mlp, transfer
from d4c.experiments.analyze.cells import Cells, write_atomically
from d4c.experiments.analyze.request import Request
from d4c.experiments.analyze.sets import stacked
from d4c.experiments.analyze.zero_shot import ZeroShot
from d4c.models import TorchEncoder
from d4c.pipeline.basis import calibration_tokens, fold, held_out_tokens
from d4c.pipeline.quantization import environment
from d4c.pipeline.stages import tensor_hash
from d4c.prompts import load_templates
from d4c.recipes import dump_recipe

Features = dict[str, NDArray[np.float64]]


def run(request: Request, report: Report) -> dict[str, Any]:
    """Measure what was asked for and write `analysis.json`, pictures and `report.html`; finished cells are recalled.

    Returns:
        the content of analysis.json.
    """
    out, clip = request.out, request.clip
    out.mkdir(parents=True, exist_ok=True)
    cells = Cells(out, [*environment(clip), request.seed])
    measures = {
        "coverage": _coverage,
        "patches": _patches,
        "map": _map,
        "sensitivity": _sensitivity,
        "text-mlp": _text_mlp,
        "transfer": _transfer,
    }
    result: dict[str, Any] = {"about": about(request)}
    for part in request.parts:
        report(part, 0, 0)
        result[part] = measures[part](request, cells, report)
    pictures = plots.draw(result, request)
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png")
    write_atomically(out / "analysis.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_atomically(out / "report.html", page.page(result, {name: out / f"{name}.png" for name in pictures}))
    return result


def about(request: Request) -> dict[str, Any]:
    """What was analysed, and with what."""
    return {
        "model": request.clip.source,
        "fingerprint": request.clip.fingerprint,
        "recipe": request.recipe.name,
        "sets": {name: {"source": s.source, "images": len(s), "seed": s.seed} for name, s in request.sets.items()},
        "reference": request.reference,
        "calibrate_on": request.calibrate_on,
        "prompts": len(request.bank.prompts),
        "iterations": request.iterations,
        "bits": list(request.bits),
        "judge_images": request.judge_images,
        "dataset": None
        if request.labelled is None
        else {"name": request.labelled.task.name, "images": len(request.labelled.labels)},
        "seed": request.seed,
        "threads": torch.get_num_threads(),
        "device": request.clip.logit_scale.device.type,
        "versions": {"d4c": d4c.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _features(request: Request) -> Features:
    encoder = TorchEncoder(request.clip)
    return {n: unit(encoder.encode_image(s.pixels.numpy())).astype(np.float64) for n, s in request.sets.items()}


def _coverage(request: Request, cells: Cells, _: Report) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        ids = request.clip.tokenizer(request.bank.prompts)
        prompts = unit(TorchEncoder(request.clip).encode_text(ids)).astype(np.float64)
        cosines = {name: x @ prompts.T for name, x in _features(request).items()}
        return coverage.prompt_coverage(cosines, request.reference)

    settings = [request.bank.prompts, request.reference, _set_hashes(request, *request.sets)]
    return cells.get("coverage", "all", settings, measure)


def _patches(request: Request, cells: Cells, _: Report) -> dict[str, Any]:
    return {
        name: cells.get(
            "patches",
            name,
            [_set_hashes(request, name)],
            partial(patches.measure_set, request.clip, images),
        )
        for name, images in request.sets.items()
    }


def _map(request: Request, cells: Cells, _: Report) -> dict[str, Any]:
    return cells.get(
        "map",
        "all",
        [request.reference, _set_hashes(request, *request.sets)],
        lambda: feature_map.feature_map(_features(request), request.reference, request.seed),
    )


def calibration_ids(request: Request) -> Tensor:
    """The texts that a quantization with this seed calibrates on, [text, token]."""
    config = request.recipe.calibrate
    templates = load_templates(config.templates)
    return calibration_tokens(request.clip, request.fitted_bank, templates, config.texts, request.seed)


def _sensitivity(request: Request, cells: Cells, report: Report) -> dict[str, Any]:
    clip, num = request.clip, request.judge_images
    held = synthesize.held_out_sets(clip, request.held_bank.prompts, user_cache(), Work(None, report))
    judges = {name: images.pixels[:num] for name, images in held.items()}
    headline = list(judges)
    if request.reference is not None:
        judges[request.reference] = request.sets[request.reference].pixels[: 2 * num]
    pixels, places = stacked(judges)
    texts = held_out_tokens(clip, request.held_bank)
    study = sensitivity.Study(
        fold(clip, request.recipe),
        request.recipe,
        request.sets[request.calibrate_on],
        calibration_ids(request),
        {"image": pixels, "text": texts},
        {"image": places, "text": {"texts": slice(0, len(texts))}},
        {"image": headline, "text": ["texts"]},
    )
    used = [request.calibrate_on, *([request.reference] if request.reference else [])]
    settings = [dump_recipe(request.recipe), *_text_hashes(study.ids, texts), _set_hashes(request, *used), num]
    result = sensitivity.measure(study, request.bits, cells, settings, report)
    return {**result, "summary": sensitivity.summarize(result, request.reference)}


def _text_mlp(request: Request, cells: Cells, report: Report) -> dict[str, Any]:
    study = text_mlp.TextStudy(
        fold(request.clip, request.recipe),
        request.recipe,
        request.sets[request.calibrate_on],
        calibration_ids(request),
        held_out_tokens(request.clip, request.held_bank),
        request.iterations,
        _zero_shot(request),
        request.seed,
    )
    settings = [dump_recipe(request.recipe), *_text_hashes(study.ids, study.held_ids), _data_key(request)]
    return text_mlp.measure(study, request.bits, cells, settings, report)


def _transfer(request: Request, cells: Cells, report: Report) -> dict[str, Any]:
    study = transfer.TransferStudy(request.clip, request.sets, calibration_ids(request), _zero_shot(request))
    settings = [_set_hashes(request, *request.sets), _data_key(request)]
    return transfer.measure(study, request.transfer_recipes, cells, settings, report)


def _zero_shot(request: Request) -> ZeroShot | None:
    return None if request.labelled is None else ZeroShot(request.clip, request.labelled)


def _set_hashes(request: Request, *names: str) -> dict[str, str]:
    return {name: tensor_hash(request.sets[name].pixels) for name in names}


def _text_hashes(*texts: Tensor) -> list[str]:
    return [tensor_hash(ids) for ids in texts]


def _data_key(request: Request) -> list[Any]:
    if request.labelled is None:
        return []
    task, labelled = request.labelled.task, request.labelled
    hashes = [tensor_hash(torch.from_numpy(values)) for values in (labelled.pixels, labelled.labels)]
    return [task.name, task.classnames, task.templates, *hashes]

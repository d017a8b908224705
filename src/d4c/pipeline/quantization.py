"""The order of the stages: a model's name in, an artifact folder out, resumable at every piece of work.

load -> synthesize -> fold -> calibrate -> wrap -> reconstruct -> freeze -> evaluate -> write
"""

from __future__ import annotations

import dataclasses
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import d4c
from d4c import calibrate, evaluate, package, reconstruct, synthesize
from d4c.artifact import FORMAT_VERSION, Artifact, Work, read_artifact, read_manifest, user_cache, write_artifact
from d4c.artifact.work import Report, check_named
from d4c.errors import ArtifactError, UsageError
from d4c.images import PROCEDURES, ImageSet, contact_sheet, load_image_folder, with_crops
from d4c.memory import return_freed_memory
from d4c.models import Clip, QuantizedClip, TorchEncoder, load, sites_of, wrap
from d4c.pipeline.basis import calibration_tokens, default_bank, fold, held_out_tokens, split_bank
from d4c.pipeline.budget import bits_within, check_budget
from d4c.pipeline.places import (
    KEPT_IMAGES,
    check_pieces,
    check_writable,
    remove_pieces,
    remove_run,
    resolve_device,
    work_folder_of,
)
from d4c.pipeline.stages import Stages, hash_of, tensor_hash
from d4c.prompts import PromptBank, load_templates, read_prompts
from d4c.quantizers.ranges import Ranges
from d4c.quantizers.scheme import Scheme, resolve_scheme
from d4c.ranks import ALONE, Ranks
from d4c.recipes import Recipe, Reconstruct, Synthesize, dump_recipe, load_recipe


@dataclass(frozen=True)
class Job:
    """One quantization, everything looked up and checked before any work.

    Args:
        clip: the float model on its device; bank: what images are drawn towards; held_bank: names that judge.
        templates: what the texts of calibration put the bank's names in.
        images: pictures of the user's own, or None where they are to be made.
        fresh: start over instead of continuing, or over a finished artifact.
        size_budget: bytes that weights may take, for which bits are chosen layer by layer; None leaves the recipe's.
        settings: hash of all that the user decided: model, recipe, prompts, images, seed.
    """

    clip: Clip
    recipe: Recipe
    scheme: Scheme
    bank: PromptBank
    held_bank: PromptBank
    templates: tuple[str, ...]
    images: ImageSet | None
    out: Path
    seed: int
    keep_images: bool
    fresh: bool
    size_budget: int | None
    settings: str

    @property
    def work_folder(self) -> Path:
        """Where results of unfinished stages lie."""
        return work_folder_of(self.out)


def quantize(
    model: str,
    *,
    recipe: str = "w4a8",
    out: str | Path | None = None,
    pretrained: str | None = None,
    images: str | None = None,
    prompts: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    overrides: Sequence[str] = (),
    size_budget: int | None = None,
    fresh: bool = False,
    keep_images: bool = False,
    report: Report | None = None,
) -> QuantizedClip:
    """Quantize a CLIP without data and write the artifact folder; an interrupted run is continued.

    Args:
        model: any spelling that `load` takes; pretrained: open_clip's tag.
        recipe: a shipped recipe's name or a path to a TOML file; overrides: `section.key=value`.
        out: the folder to make, by default MODEL-RECIPE in the current one.
        images: instead of synthesis, a folder of pictures, of which the seed draws as many as the recipe wants, or the
            name of a procedure ("noise", "one_over_f", "dead_leaves").
        prompts: a JSON file of class names and templates instead of the model's own bank.
        device: "auto", "cpu", "cuda" or "mps".
        size_budget: bytes that model.safetensors may take: each layer gets 4 or 8 bits, whichever loses least together.
        fresh: start over instead of continuing, or over a finished artifact.
        keep_images: leave the calibration images in OUT.work.
        report: called with a label, steps done and their total.

    Returns:
        the quantized model, loaded from the artifact.

    Raises:
        D4CError: see `d4c.errors`; nothing is written for what arguments show.
    """
    job = prepare(
        model, recipe=recipe, out=out, pretrained=pretrained, images=images, prompts=prompts, device=device, seed=seed,
        overrides=overrides, size_budget=size_budget, fresh=fresh, keep_images=keep_images,
    )  # fmt: skip
    run(job, report)
    return load_quantized(job.out, device=str(job.clip.logit_scale.device))


def load_quantized(folder: str | Path, device: str = "cpu") -> QuantizedClip:
    """Load an artifact folder; its embeddings are bit-identical to those of the model that was packaged.

    Raises:
        ArtifactError: a file is missing or damaged, or of a format this version cannot read.
    """
    return package.thaw(read_artifact(Path(folder))).to(resolve_device(device))


def prepare(
    model: str,
    *,
    recipe: str,
    out: str | Path | None,
    pretrained: str | None,
    images: str | None,
    prompts: str | Path | None,
    device: str,
    seed: int,
    overrides: Sequence[str],
    fresh: bool,
    keep_images: bool,
    size_budget: int | None = None,
) -> Job:
    """Look everything up, so that what is wrong with a request shows before any work and before anything is written."""
    resolved = load_recipe(recipe, overrides)
    target = resolve_device(device)
    folder = Path(out) if out is not None else Path(f"{model.replace('/', '-').replace(':', '-')}-{resolved.name}")
    check_named(folder)
    check_writable(folder)
    bank = read_prompts(Path(prompts)) if prompts is not None else None
    templates = load_templates(resolved.calibrate.templates)
    clip = load(model, pretrained).to(target)
    given = _given_images(images, clip, resolved, seed)
    return make_job(
        clip, resolved, bank or default_bank(model, resolved), templates, given, folder,
        seed=seed, keep_images=keep_images, fresh=fresh, size_budget=size_budget,
    )  # fmt: skip


def make_job(
    clip: Clip,
    recipe: Recipe,
    bank: PromptBank,
    templates: tuple[str, ...],
    images: ImageSet | None,
    out: Path,
    *,
    seed: int,
    keep_images: bool,
    fresh: bool,
    size_budget: int | None = None,
) -> Job:
    """A job of what was looked up already; arguments as in `Job`.

    Args:
        bank: all names; the recipe says whether some are held out.

    Raises:
        RecipeError: the model cannot have what the recipe asks for.
        UsageError: `out` holds something else, or an artifact made with other settings; the size budget is too small.
    """
    scheme = resolve_scheme(recipe, sites_of(clip))
    if size_budget is not None:
        check_budget(clip, recipe, size_budget)
    if images is None:
        synthesize.check_objectives(clip, recipe.synthesize)
    bank, held_bank = split_bank(bank, recipe)
    pixels = None if images is None else tensor_hash(images.pixels)
    settings = hash_of(
        clip.fingerprint, clip.preprocess, dump_recipe(recipe), seed, bank.prompts, held_bank.prompts, templates,
        pixels, *([] if size_budget is None else [size_budget]),
    )  # fmt: skip
    job = Job(
        clip, recipe, scheme, bank, held_bank, templates, images, out, seed, keep_images, fresh, size_budget, settings
    )
    _check_finished(job)
    return job


def run(job: Job, report: Report | None = None, ranks: Ranks = ALONE) -> dict[str, Any] | None:
    """Do all stages and write the artifact; a finished artifact with the same settings is left as it is.

    Args:
        ranks: processes that each call this with the same job; the artifact does not depend on how many they are.

    Returns:
        the content of report.json; None in all processes but the first, which are done when the rounding is chosen.
    """
    finished = ranks.agree(lambda: _begin(job))
    if finished is not None:
        return finished if ranks.first else None
    clip = job.clip
    work = Work(job.work_folder, report) if report and ranks.first else Work(job.work_folder)
    stages = Stages(work, environment(clip), ranks)
    drawn = _images(job, stages)
    images = calibrate.without_outliers(fold(clip, job.recipe), drawn, job.recipe.calibrate.outliers)
    held = stages.run("held-out", [job.held_bank.prompts], lambda work: synthesize.held_out_sets(
        clip, job.held_bank.prompts, user_cache(), work, ranks
    ))  # fmt: skip
    ids = calibration_tokens(clip, job.bank, job.templates, job.recipe.calibrate.texts, job.seed)
    held_ids = held_out_tokens(clip, job.held_bank)
    if job.size_budget is not None:
        judges = held["synthetic"].pixels, held_ids
        bits = bits_within(job.size_budget, fold(clip, job.recipe), job.recipe, *judges, stages)
        fitting = job.recipe.with_weight_bits(bits)
        job = dataclasses.replace(job, recipe=fitting, scheme=resolve_scheme(fitting, sites_of(clip)))
    recipe = job.recipe
    quantized, units = _quantized(job, stages, images, held["synthetic"], ids, held_ids)
    if not ranks.first:
        return None
    stages.ranks = ALONE  # the others are done
    arrays, config = package.freeze(quantized, recipe)
    del quantized  # as large as the model itself
    return_freed_memory()
    num_parameters = sum(t.numel() for t in clip.state_dict().values() if t.is_floating_point())
    manifest = _manifest(job) | {"parameters": num_parameters}
    artifact = Artifact(job.out, arrays, config, dump_recipe(recipe), manifest, clip.preprocess, clip.tokenizer)
    evaluation = stages.run("evaluate", [], lambda _: _evaluation(job, artifact, held, held_ids))
    size = {"before_bytes": 4 * num_parameters, "after_bytes": _nbytes(arrays)}
    summary = {
        "model": clip.source,
        "recipe": recipe.name,
        "runs_as": recipe.runs_as,
        "images": {"source": images.source, "count": len(images), "left_out": len(drawn) - len(images)},
        "texts": len(ids),
        "templates": recipe.calibrate.templates,
        "size": size | {"ratio": size["after_bytes"] / size["before_bytes"]},
        "coverage": artifact.coverage(),
        "evaluation": evaluation,
        "reconstruction": reconstruct.summarize(units),
        "stages": stages.record,
    }
    _write(job, artifact, summary, images)
    return summary


def _evaluation(job: Job, artifact: Artifact, held: Mapping[str, ImageSet], held_ids: Tensor) -> dict[str, Any]:
    """What the artifact, as it will be loaded, loses on images and texts that nothing was calibrated on."""
    return evaluate.evaluate_without_data(
        TorchEncoder(job.clip),
        TorchEncoder(package.thaw(artifact).to(job.clip.logit_scale.device)),
        {name: s.pixels.numpy() for name, s in held.items()},
        job.clip.tokenizer((*job.bank.prompts, *job.held_bank.prompts)),
        held_ids.numpy(),
    )


def _begin(job: Job) -> dict[str, Any] | None:
    """The report of an artifact that is there already; what is to be made anew is cleared away first."""
    if job.fresh:
        remove_run(job.out)
    if not (job.out / "report.json").exists():
        return None
    report: dict[str, Any] = json.loads((job.out / "report.json").read_text(encoding="utf-8"))
    remove_pieces(job.work_folder)  # of a run that was killed between its last two steps
    return report


def _quantized(
    job: Job, stages: Stages, images: ImageSet, held: ImageSet, ids: Tensor, held_ids: Tensor
) -> tuple[QuantizedClip, list[reconstruct.UnitReport]]:
    """The model with its ranges found and its rounding chosen, and what was reconstructed."""
    recipe, ranks = job.recipe, stages.ranks
    folded = calibrate.fold(fold(job.clip, recipe), images, ids, job.scheme, recipe.calibrate)
    ranges = _ranges(job, stages, folded, images, ids)
    if recipe.reconstruct.method == "none":
        return wrap(folded, job.scheme, ranges), []
    more = with_crops(images, recipe.reconstruct.crops, job.seed)
    # Nobody holds on to the wrapped model, so that its weights go as better ones come.
    return stages.run("reconstruct", [recipe.reconstruct, job.seed], lambda work: reconstruct.run(
        folded, wrap(folded, job.scheme, ranges), more, ids, held, held_ids, recipe.reconstruct,
        seed=job.seed, padding=recipe.calibrate.padding, work=work, ranks=ranks,
    ))  # fmt: skip


def _images(job: Job, stages: Stages) -> ImageSet:
    if job.images is not None:
        given = job.images
        return stages.run("synthesize", [tensor_hash(given.pixels)], lambda _: given)
    return stages.run(
        "synthesize",
        [job.recipe.synthesize, job.bank.prompts, job.seed],
        lambda work: synthesize.run(
            job.clip, job.bank.prompts, job.recipe.synthesize, seed=job.seed, work=work, ranks=stages.ranks
        ),
        save=ImageSet.save,
        recall=ImageSet.load,
    )


def _ranges(job: Job, stages: Stages, folded: Clip, images: ImageSet, ids: Tensor) -> Ranges:
    recipe = job.recipe
    quantization = dataclasses.replace(recipe, synthesize=Synthesize(), reconstruct=Reconstruct())
    # As tensors in main memory, since every process puts what the first one recalls on a device of its own.
    flat = stages.run(
        "calibrate",
        [dump_recipe(quantization), job.bank.prompts, job.templates, job.seed],
        lambda work: calibrate.run(
            folded, images, ids, job.scheme, recipe.calibrate, work=work, ranks=stages.ranks
        ).to_tensors(),
        save=save_file,
        recall=load_file,
    )
    return Ranges.from_tensors({name: tensor.to(folded.logit_scale.device) for name, tensor in flat.items()})


def _write(job: Job, artifact: Artifact, summary: dict[str, Any], images: ImageSet) -> None:
    """Write the artifact in one rename, then remove what unfinished stages left."""
    sheet = io.BytesIO()
    contact_sheet(images, job.clip.preprocess).save(sheet, "PNG")
    extra = {
        "contact_sheet.png": sheet.getvalue(),
        "report.json": (json.dumps(summary, indent=1) + "\n").encode(),
        "README.md": package.model_card(summary, artifact.quantization).encode(),
    }
    if job.keep_images:
        images.save(job.work_folder / KEPT_IMAGES)
    write_artifact(artifact, job.work_folder / "artifact", {"stages": summary["stages"]}, extra)
    remove_pieces(job.work_folder)


def _manifest(job: Job) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "source": job.clip.source,
        "fingerprint": job.clip.fingerprint,
        "seed": job.seed,
        "settings": job.settings,
        "prompts": {"fitted": dataclasses.asdict(job.bank), "held_out": dataclasses.asdict(job.held_bank)},
        "threads": torch.get_num_threads(),
        "device": job.clip.logit_scale.device.type,
        "versions": {"d4c": d4c.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def environment(clip: Clip) -> list[Any]:
    """What every stage's result depends on beside its settings."""
    device, threads = clip.logit_scale.device.type, torch.get_num_threads()
    return [
        clip.fingerprint, clip.preprocess, threads, device, torch.__version__, d4c.__version__, FORMAT_VERSION
    ]  # fmt: skip


def _given_images(images: str | None, clip: Clip, recipe: Recipe, seed: int) -> ImageSet | None:
    if images is None:
        return None
    if images in PROCEDURES:
        return synthesize.procedural(images, recipe.synthesize.images, clip, seed, valid=images != "noise")
    return load_image_folder(Path(images), clip.preprocess, recipe.synthesize.images, seed)


def _check_finished(job: Job) -> None:
    """Refuse to touch what is not ours to continue, or to replace."""
    check_pieces(job.work_folder)
    if job.out.is_dir() and any(job.out.iterdir()):
        try:
            manifest = read_manifest(job.out)
        except ArtifactError as error:
            raise UsageError(f"{error}: not an artifact to replace; name another place with --out") from error
        if not job.fresh and manifest.get("settings") != job.settings:
            raise UsageError(f"{job.out} was made with other settings; --fresh starts over, --out names another place")
        if not job.fresh:
            read_artifact(job.out)  # a damaged one is not done


def _nbytes(arrays: dict[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values())

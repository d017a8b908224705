"""The paper's program: its flags become a recipe, and a run becomes CLIP_benchmark's result file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from d4c import evaluate, pipeline
from d4c.artifact.work import Report, appearing_whole
from d4c.errors import UnknownNameError, UsageError
from d4c.images import ImageSet
from d4c.inputs import Preprocess
from d4c.models import Clip, TorchEncoder, load
from d4c.models.names import OPENAI_NAMES
from d4c.models.resnet import ModifiedResNet
from d4c.pipeline.places import check_writable, resolve_device
from d4c.pipeline.quantization import make_job
from d4c.prompts import PromptBank, load_prompts, load_templates, read_prompts
from d4c.recipes import Recipe, load_recipe
from d4c.recipes.methods import with_method
from d4c.recipes.recipe import TEMPLATE_SETS

GEN_METHODS = ("d4c", "baseline")
LOOK_AROUND = 20  # times as many images of a stream are read as are drawn from it


@dataclass(frozen=True)
class PaperFlags:
    """What the paper's program can be told, by the names of its flags; those without effect are left out.

    Args:
        given: the flags that were on the command line, for saying which had no effect.
    """

    dataset: str
    dataset_root: str
    split: str
    train_split: str
    model: str
    model_cache_dir: str | None
    task: str
    batch_size: int
    seed: int
    custom_classname_file: str | None
    custom_template_file: str | None
    dump_classnames: bool
    dump_templates: bool
    output: str
    skip_existing: bool
    save_clf: str | None
    load_clfs: tuple[str, ...]
    fp_model: bool
    q_config: str
    recon: bool
    custom_file: str | None
    dfq: bool
    gen_img: bool
    gen_method: str
    d4c_config: int
    gen_batch_size: int
    gen_lr: float
    gen_iter: int
    img_path: str | None
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.gen_method not in GEN_METHODS:
            raise UnknownNameError("gen_method", self.gen_method, GEN_METHODS)
        if self.d4c_config not in range(4):
            raise UsageError(f"--d4c_config is 0, 1, 2 or 3; got {self.d4c_config}")
        if self.batch_size < 1:
            raise UsageError(f"--batch_size is at least 1; got {self.batch_size}")

    @property
    def output_path(self) -> Path:
        """Where the result goes: names in braces filled in, slashes in them as dashes."""
        names = {"model": self.model, "task": self.task, "dataset": self.dataset}
        try:
            return Path(self.output.format(**{k: v.replace("/", "-") for k, v in names.items()}))
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                f"--output {self.output}: only {{model}}, {{task}} and {{dataset}} are filled in"
            ) from error

    @property
    def root(self) -> Path:
        """The data set's folder; `{dataset}` and `{dataset_cleaned}` are filled in."""
        cleaned = self.dataset.replace("/", "-")
        try:
            return Path(self.dataset_root.format(dataset=self.dataset, dataset_cleaned=cleaned))
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                f"--dataset_root {self.dataset_root}: only {{dataset}} and {{dataset_cleaned}} are filled in"
            ) from error


def notes(flags: PaperFlags) -> list[str]:
    """What a flag of the command line does not do, a sentence each."""
    said = []
    if not flags.dfq:
        said += [f"--{f} has no effect without --dfq" for f in ("gen_img", "img_path") if f in flags.given]
    generating = flags.dfq and flags.gen_img
    if not generating:
        unused = ("gen_method", "d4c_config", "gen_batch_size", "gen_lr", "gen_iter")
        said += [f"--{flag} has no effect without --dfq --gen_img" for flag in unused if flag in flags.given]
    elif flags.gen_method == "baseline" and "d4c_config" in flags.given:
        said.append("--d4c_config has no effect with --gen_method baseline")
    if flags.fp_model:
        unused = ("recon", "dfq", "gen_img", "img_path", "custom_file")
        said += [f"--{flag} has no effect with --fp_model" for flag in unused if flag in flags.given]
    return said


def recipe_of(flags: PaperFlags, *, resnet: bool) -> Recipe:
    """The recipe that the flags become.

    Args:
        resnet: whether the image tower is a ResNet, for the baseline: BNS there, PSE in ViTs.

    Raises:
        RecipeError: `--q_config` cannot be read.
    """
    recipe = load_recipe(flags.q_config)
    name = f"d4c-{flags.d4c_config}"
    if flags.gen_method == "baseline":
        name = "bns" if resnet else "pse"
    config = with_method(recipe.synthesize, name if flags.gen_img else "noise")
    config = dataclasses.replace(
        config, batch=flags.gen_batch_size, learning_rate=flags.gen_lr, steps=flags.gen_iter if flags.gen_img else 0
    )
    learned = recipe.reconstruct if flags.recon else dataclasses.replace(recipe.reconstruct, method="none")
    return dataclasses.replace(recipe, synthesize=config, reconstruct=learned)


def load_model(flags: PaperFlags) -> Clip:
    """`--model`, from `--model_cache_dir` where that is given, under the name that OpenAI's package gives the file.

    Raises:
        UsageError: the folder lacks it; else as `d4c.load`.
    """
    if flags.model_cache_dir is None or flags.model not in OPENAI_NAMES:
        return load(flags.model)
    path = Path(flags.model_cache_dir) / f"{flags.model.replace('/', '-').replace('@', '-')}.pt"
    if not path.is_file():
        raise UsageError(f"--model_cache_dir: no such file: {path}")
    return load(str(path))


@dataclass(frozen=True)
class Experiment:
    """Flags with everything looked up."""

    flags: PaperFlags
    clip: Clip
    recipe: Recipe
    bank: PromptBank
    task: evaluate.ImageTask


def prepare(flags: PaperFlags, *, device: str, report: Report) -> Experiment:
    """Look everything up; nothing is written.

    Raises:
        D4CError: see `d4c.errors`.
    """
    target = resolve_device(device)
    for path in (flags.output_path, *([Path(flags.save_clf)] if flags.save_clf else [])):
        check_writable(path.absolute().parent)
    given_classifier(flags)
    load_recipe(flags.q_config)
    bank = read_prompts(Path(flags.custom_file)) if flags.custom_file else load_prompts("paper")
    evaluate.find_set(flags.dataset, flags.root, flags.split)
    names, templates = _json(flags.custom_classname_file), _json(flags.custom_template_file)
    clip = load_model(flags).to(target)  # slow, so after what is quick to refuse
    recipe = recipe_of(flags, resnet=isinstance(clip.image, ModifiedResNet))
    task = evaluate.load_task(
        flags.dataset, flags.root, clip.preprocess, flags.split, report=report, classnames=names, templates=templates
    )
    if not isinstance(task, evaluate.ImageTask):
        raise UsageError(f"{flags.dataset}: captions without classes; the paper's program classifies")
    if not flags.fp_model:
        templates = _templates(task)
        calibration = dataclasses.replace(recipe.calibrate, templates=_name(templates, flags.output_path))
        recipe = dataclasses.replace(recipe, calibrate=calibration)
    return Experiment(flags, clip, recipe, bank, task)


def run(experiment: Experiment, *, fresh: bool, report: Report) -> dict[str, Any]:
    """Quantize as the flags say, evaluate, and write the result; the artifact stays beside it.

    Evaluation is in float32, as with the paper's `--no_amp`.

    Returns:
        CLIP_benchmark's record, as it was written.

    Raises:
        D4CError: see `d4c.errors`.
    """
    flags, task, path = experiment.flags, experiment.task, experiment.flags.output_path
    clip = experiment.clip if flags.fp_model else _quantized(experiment, fresh, report)
    prediction = _predict(flags, TorchEncoder(clip), task, report)
    record = evaluate.result_json(
        task, flags.model, prediction.metrics,
        dump_classnames=flags.dump_classnames, dump_templates=flags.dump_templates,
    ) | {"task": flags.task}  # fmt: skip
    _write(path, record)
    return record


def _write(path: Path, data: Any) -> None:
    with appearing_whole(path) as temporary:
        temporary.write_text(json.dumps(data) + "\n", encoding="utf-8")


def _quantized(experiment: Experiment, fresh: bool, report: Report) -> Clip:
    flags, clip, recipe = experiment.flags, experiment.clip, experiment.recipe
    path, templates = flags.output_path, _templates(experiment.task)
    if recipe.calibrate.templates not in TEMPLATE_SETS:
        _write(Path(recipe.calibrate.templates), {"templates": templates})
    images = None if flags.dfq else _real_images(experiment, recipe.synthesize.images, report)
    job = make_job(
        clip, recipe, experiment.bank, templates, images, path.with_suffix(".artifact"),
        seed=flags.seed, keep_images=True, fresh=fresh,
    )  # fmt: skip
    pipeline.run(job, report)
    if flags.dfq and flags.img_path:
        kept = job.work_folder / "images.safetensors"
        save_pictures(ImageSet.load(kept), clip.preprocess, Path(flags.img_path))
    return pipeline.load_quantized(job.out, device=str(clip.logit_scale.device))


def _templates(task: evaluate.ImageTask) -> tuple[str, ...]:
    """The data set's own templates, which the paper's texts are made with."""
    if isinstance(task.templates, Mapping):
        raise UsageError(f"{task.name}: calibration texts need templates with {{c}}, not whole texts by class")
    return tuple(task.templates)


def _name(templates: tuple[str, ...], path: Path) -> str:
    """What a recipe calls these templates: a shipped set, or the file beside the result that will hold them."""
    shipped = (name for name in TEMPLATE_SETS if load_templates(name) == templates)
    return next(shipped, str(path.with_suffix(".templates.json")))


def _json(path: str | None) -> Any:
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _real_images(experiment: Experiment, num: int, report: Report) -> ImageSet:
    """Images of the training split, drawn by the seed; of a stream, from its beginning.

    Raises:
        RunError: there is none.
    """
    flags, preprocess = experiment.flags, experiment.clip.preprocess
    task = evaluate.load_task(flags.dataset, flags.root, preprocess, flags.train_split, report=report)
    assert isinstance(task, evaluate.ImageTask)
    pixels, _ = task.draw(num, flags.seed, LOOK_AROUND)
    return ImageSet.unlabelled(torch.from_numpy(pixels), f"{flags.dataset} {flags.train_split}", flags.seed)


def _predict(flags: PaperFlags, encoder: TorchEncoder, task: evaluate.ImageTask, report: Report) -> evaluate.Prediction:
    """With the text tower's classifier, or the mean of given ones."""
    classifier = given_classifier(flags)
    if classifier is None:
        classifier = evaluate.zero_shot_classifier(encoder, task, report)
    if flags.save_clf:
        with appearing_whole(Path(flags.save_clf)) as temporary:
            torch.save(torch.from_numpy(classifier), temporary)
    encoders, classifiers = {"model": encoder}, {"model": classifier}
    return evaluate.predict(encoders, classifiers, task, report, flags.batch_size)["model"]


def given_classifier(flags: PaperFlags) -> Any:
    """The mean of the classifiers of `--load_clfs`, [embedding, class]; None without the flag.

    Raises:
        UsageError: a file cannot be read, or they are of different shapes.
    """
    given = [_load_classifier(path) for path in flags.load_clfs]
    shapes = {classifier.shape for classifier in given}
    if len(shapes) > 1:
        raise UsageError(f"--load_clfs: classifiers of different shapes: {', '.join(map(str, sorted(shapes)))}")
    return np.mean(given, axis=0) if given else None


def _load_classifier(path: str) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu").float().numpy()
    except Exception as error:  # a missing, broken or foreign file
        raise UsageError(f"--load_clfs {path}: not a saved classifier: {error}") from error


def save_pictures(images: ImageSet, preprocess: Preprocess, folder: Path) -> None:
    """Write `Generated_Image_000.png` and so on, clipped to what a picture can hold (the authors' cast wraps)."""
    folder.mkdir(parents=True, exist_ok=True)
    mean, std = (np.asarray(v, np.float32).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    for i, pixels in enumerate(images.pixels.numpy()):
        picture = np.clip((pixels * std + mean) * 255, 0, 255).round().astype(np.uint8)  # [channel, row, column]
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"Generated_Image_{i:03d}.png")


def dataset_of(names: Sequence[str]) -> str:
    """The first of the data sets named: a name, or a file with a name a line."""
    first = Path(names[0])
    if not first.is_file():
        return names[0]
    lines = [line.strip() for line in first.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"--dataset {first}: no name in this file")
    return lines[0]

"""`d4c reproduce`: the flags of the paper's program, underscores and all."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

import typer

from d4c.cli import options
from d4c.cli.progress import progress
from d4c.cli.tables import print_json
from d4c.errors import UsageError

# Inherited from CLIP_benchmark and without effect there too, or without meaning here; the reason is printed.
INERT: dict[str, str] = {
    "val_split": "there is no validation", "val_proportion": "there is no validation",
    "no_amp": "evaluation is in float32", "num_workers": "images are read in this process",
    "distributed": "one process does the work", "annotation_file": "classification sets have none",
    "wds_cache_dir": "data is read where it lies", "recall_k": "captions are not searched",
    "fewshot_k": "nothing is trained", "fewshot_epochs": "nothing is trained", "fewshot_lr": "nothing is trained",
    "normalize": "features are always normalised", "feature_root": "none are kept",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong as every command does: one line, exit code 2."""
        raise UsageError(f"reproduce: {message}")


def parser() -> argparse.ArgumentParser:
    """The paper's flags; of those that take several values, the first counts."""
    p = _Parser("d4c reproduce", description="Run the D4C paper's experiment from its own flags.", allow_abbrev=False)
    p.add_argument("--dataset", nargs="+", default=["cifar10"], help="cifar10, cifar100, imagenet1k, wds/NAME")
    p.add_argument("--dataset_root", default="root", help="{dataset} and {dataset_cleaned} are filled in")
    p.add_argument("--split", "--test_split", default="test")
    p.add_argument("--train_split", nargs="+", default=["train"], help="of calibration images, without --dfq")
    p.add_argument("--model", nargs="+", default=["ViT-B/32"])
    p.add_argument("--model_type", choices=["openai_clip"], default="openai_clip")
    p.add_argument("--model_cache_dir", help="folder with ViT-B-32.pt and the like")
    p.add_argument("--task", default="zeroshot_classification", choices=["zeroshot_classification"])
    p.add_argument("--batch_size", type=int, default=64, help="of evaluation")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--custom_classname_file")
    p.add_argument("--custom_template_file", help="of evaluation and of calibration texts")
    p.add_argument("--dump_classnames", action="store_true")
    p.add_argument("--dump_templates", action="store_true")
    p.add_argument("--output", default="result.json", help="{model}, {task} and {dataset} are filled in")
    p.add_argument("--skip_existing", action="store_true")
    p.add_argument("--quiet", dest="verbose", action="store_false")
    p.add_argument("--save_clf", help="file for the text classifier")
    p.add_argument("--load_clfs", nargs="+", default=[], help="classifiers to average instead of the text tower's")
    p.add_argument("--fp_model", action="store_true", help="evaluate the float model")
    p.add_argument("--q_config", default="./exp/config66.yaml", help="YAML; config48, config66, config88 are shipped")
    p.add_argument("--recon", action="store_true", help="AdaRound and LSQ; else round to nearest")
    p.add_argument("--custom_file", help="JSON with classnames and templates; default the paper's")
    p.add_argument("--dfq", action="store_true", help="data-free; else 128 training images")
    p.add_argument("--gen_img", action="store_true", help="synthesize; else noise")
    p.add_argument("--gen_method", default="d4c", help="d4c or baseline")
    p.add_argument("--d4c_config", type=int, default=3, help="0 prompts, 1 + structure, 2 + perturbation, 3 all")
    p.add_argument("--gen_batch_size", type=int, default=16)
    p.add_argument("--gen_lr", type=float, default=0.01)
    p.add_argument("--gen_iter", type=int, default=3000, help="sweeps")
    p.add_argument("--img_path", help="folder for the synthesized images as PNG")
    for flag in INERT:
        takes: dict[str, Any] = {"action": "store_true"} if flag in ("no_amp", "distributed") else {"nargs": "+"}
        p.add_argument(f"--{flag}", **takes, help=argparse.SUPPRESS)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    p.add_argument("--threads", type=int, help="processor threads")
    p.add_argument("--fresh", action="store_true", help="start over instead of continuing")
    return p


def reproduce(context: typer.Context) -> None:
    """Run the paper's experiment from its own flags (d4c reproduce --help lists them)."""
    arguments = context.args
    given = vars(parser().parse_args(arguments))
    options.use_threads(given["threads"])
    from d4c.experiments import reproduce as paper
    from d4c.recipes import dump_recipe

    flags = _flags(given, arguments)
    if flags.skip_existing and flags.output_path.exists():
        typer.echo(flags.output_path.read_text(encoding="utf-8"), nl=False)
        return
    said = [f"--{flag} has no effect: {reason}" for flag, reason in INERT.items() if flag in flags.given]
    for note in [*said, *paper.notes(flags)] if given["verbose"] else ():
        typer.echo(note, err=True)
    with progress() as report:
        experiment = paper.prepare(flags, device=given["device"], report=report)
        if given["verbose"] and not flags.fp_model:
            typer.echo(dump_recipe(experiment.recipe))
        record = paper.run(experiment, fresh=given["fresh"], report=report)
    print_json(record)


def _flags(given: dict[str, Any], arguments: list[str]) -> Any:
    from d4c.experiments.reproduce import PaperFlags, dataset_of

    names = {argument.partition("=")[0].removeprefix("--") for argument in arguments if argument.startswith("--")}
    first = {key: given[key][0] for key in ("train_split", "model")}
    taken = {f: given[f] for f in PaperFlags.__dataclass_fields__ if f in given}
    return PaperFlags(**{
        **taken, **first, "dataset": dataset_of(given["dataset"]), "load_clfs": tuple(given["load_clfs"]),
        "given": frozenset(names),
    })  # fmt: skip

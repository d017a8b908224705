"""Which calibration images are good enough at which bits: noise, 1/f noise, synthesized, real.

    python benchmarks/calibration_images.py tiny-rn --root DATA --real FOLDER --out runs/tiny-rn [--set k=v]...

Quantizes MODEL with every recipe and every source of images, measures zero-shot accuracy on --dataset below
DATA, and prints Markdown tables of the losses in points with their paired standard errors. FOLDER is
`calibration/` of what `training/holdout.py` writes. The synthesized images are made once and serve all recipes.
OUT/results.jsonl gets a line a run; the same command skips what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from d4c import evaluate, pipeline
from d4c.evaluate import ImageTask, Prediction
from d4c.images import ImageSet
from d4c.recipes import load_recipe

TOWERS = {"both": "both towers quantized", "image": "image tower quantized, text tower float"}


def measure(
    model: str, recipe: str, images: str | ImageSet, reference: Prediction, task: ImageTask, args: argparse.Namespace
) -> dict[str, Any]:
    """Quantize and evaluate once; the artifact is thrown away."""
    out = args.out / "artifact"
    job = pipeline.prepare(
        model, recipe=recipe, out=out, pretrained=None, images=images if isinstance(images, str) else None,
        prompts=None, device="cpu", seed=args.seed, overrides=args.overrides, fresh=True, keep_images=False,
    )  # fmt: skip
    if isinstance(images, ImageSet):
        job = dataclasses.replace(job, images=images)
    summary = pipeline.run(job)
    both, plain = pipeline.open_encoder(str(out)), pipeline.open_encoder(model)
    classifiers = {
        name: evaluate.zero_shot_classifier(encoder, task, silent)
        for name, encoder in (("both", both), ("image", plain))
    }
    predictions = evaluate.predict({"both": both, "image": both}, classifiers, task, silent)
    shutil.rmtree(out)
    return {
        "float": reference.metrics["acc1"],
        **{name: evaluate.paired(reference, prediction) for name, prediction in predictions.items()},
        "worst": summary["evaluation"]["worst"],
        "reconstruction": summary["reconstruction"]["by_weight_bits"],
        "seconds": {name: stage["seconds"] for name, stage in summary["stages"].items()},
    }  # fmt: skip


def silent(_label: str, _done: int, _total: int) -> None:
    pass


def synthesized(model: str, args: argparse.Namespace) -> ImageSet:
    """The recipes' own images, all recipes' the same."""
    folder = args.out / "synthesized"
    if not folder.exists():
        pipeline.synthesize_to_folder(
            model, out=folder, recipe=args.recipes[0], pretrained=None, prompts=None, device="cpu", seed=args.seed,
            overrides=args.overrides, fresh=False, report=silent,
        )  # fmt: skip
    return ImageSet.load(folder / "images.safetensors")


def table(rows: list[dict[str, Any]], towers: str, recipes: list[str], sources: list[str]) -> str:
    """Markdown: a line a source, a column a recipe, points against float ± paired standard error.

    Args:
        towers: which were quantized, "both" or "image".
    """
    lines = [f"| images | {' | '.join(recipes)} |", "|---|" + "---:|" * len(recipes)]
    for source in sources:
        cells = []
        for recipe in recipes:
            found = [r[towers] for r in rows if (r["recipe"], r["images"]) == (recipe, source)]
            cells.append(
                f"{100 * found[0]['acc1_difference']:+.1f} ± {100 * found[0]['acc1_standard_error']:.1f}"
                if found
                else ""
            )
        lines.append(f"| {source} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dataset", default="wds/tiny-imagenet")
    parser.add_argument("--recipes", nargs="+", default=["w8a8", "w4a8", "w4a4", "w3a3", "w2a3"])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    (args.out / "real").mkdir(parents=True, exist_ok=True)
    num_images = load_recipe(args.recipes[0], args.overrides).synthesize.images
    for path in sorted(args.real.iterdir())[:num_images]:  # as many as the others have
        shutil.copy(path, args.out / "real" / path.name)
    sources = {
        "noise": "noise", "1/f noise": "one_over_f", "synthesized": synthesized(args.model, args),
        "real": str(args.out / "real"),
    }  # fmt: skip
    encoder = pipeline.open_encoder(args.model)
    task = evaluate.load_task(args.dataset, args.root, encoder.preprocess)
    reference = evaluate.classify({"float": encoder}, task, silent)["float"]
    log = args.out / "results.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for recipe in args.recipes:
        for source, images in sources.items():
            if any((r["recipe"], r["images"]) == (recipe, source) for r in rows):
                continue
            figures = measure(args.model, recipe, images, reference, task, args)
            rows.append({"recipe": recipe, "images": source, **figures})
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(recipe, source, *(f"{t}: {100 * figures[t]['acc1_difference']:+.2f}" for t in TOWERS), flush=True)
    print(f"\n{args.model}: float {rows[0]['float']:.2%}, seed {args.seed}, {' '.join(args.overrides) or 'defaults'}\n")
    for towers, title in TOWERS.items():
        print(f"{title}:\n\n{table(rows, towers, args.recipes, list(sources))}\n")


if __name__ == "__main__":
    main()

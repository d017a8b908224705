"""How many texts, and how many bits for the MLP? The text tower alone, rounded in closed form, on classes and names.

    python benchmarks/text_tower.py MODEL --root FOLDER --dataset wds/settings --out FOLDER

Every line: bits of the text MLP's weights, number of calibration texts, and over the seeds the mean and the spread of
zero-shot top-1 less float's, the image tower being float, and of the centred error on held-out names. All other layers
are as the recipe says. FOLDER keeps finished towers, so that the same command continues, and gets text_tower.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from d4c import evaluate
from d4c.evaluate.agreement import tower_error
from d4c.experiments.cells import Place, Setup, judges, set_up, text_tower
from d4c.experiments.grid import Cell, Grid
from d4c.models import TorchEncoder, sites_of
from d4c.pipeline import embedding_cache
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import Rule

MLP = "text.blocks.*.mlp.*"


def quiet(*_: object) -> None:
    """Nobody watches."""


def setup_of(args: argparse.Namespace, bits: int, texts: int, seed: int) -> Setup:
    """A cell whose last rule, which decides, is about the text MLP; calibration images do not matter."""
    cell = Cell(args.model, args.recipe, args.recipe, "one_over_f", seed)
    overrides = ("reconstruct.method=closed_form", f"calibrate.texts={texts}")
    grid = Grid("text_tower", args.dataset, (cell,), overrides=overrides)
    setup = set_up(grid, cell, Place(args.out, args.root, None, "cpu"))
    recipe = dataclasses.replace(setup.recipe, rules=(*setup.recipe.rules, Rule(MLP, weight_bits=bits)))
    return dataclasses.replace(setup, recipe=recipe, scheme=resolve_scheme(recipe, sites_of(setup.clip)))


def measure(setup: Setup) -> dict[str, float]:
    """Points of top-1 less float's, and the centred error, of one text tower."""
    held = judges(setup)
    plain, encoder = TorchEncoder(setup.clip), TorchEncoder(text_tower(setup, held, quiet)[0])
    cache = embedding_cache(setup.clip)
    classifiers = {
        "float": evaluate.zero_shot_classifier(plain, setup.task, quiet, cache=cache),
        "text": evaluate.zero_shot_classifier(encoder, setup.task, quiet),
    }
    caches = {"float": cache, "text": cache}
    seen = evaluate.predict({"float": plain, "text": plain}, classifiers, setup.task, quiet, caches=caches)
    names = held.texts.numpy()
    return {
        "points": 100 * (seen["text"].metrics["acc1"] - seen["float"].metrics["acc1"]),
        "error": tower_error(plain.encode_text(names), encoder.encode_text(names)).centred_error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipe", default="w4a8")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--dataset", default="wds/settings")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4])
    parser.add_argument("--texts", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    found: list[dict[str, Any]] = []
    for bits in args.bits:
        for texts in args.texts:
            runs = [{"seed": seed, **measure(setup_of(args, bits, texts, seed))} for seed in args.seeds]
            found.append({"mlp_bits": bits, "texts": texts, "runs": runs})
            points, errors = ([run[key] for run in runs] for key in ("points", "error"))
            spread = statistics.stdev(points) if len(points) > 1 else 0.0
            about = f"{args.model} MLP at {bits} bits, {texts} texts"
            means = f"{statistics.mean(points):+.2f} ± {spread:.2f} points, error {statistics.mean(errors):.4f}"
            print(f"{about}: {means}", flush=True)
            result = {"model": args.model, "recipe": args.recipe, "found": found}
            (args.out / "text_tower.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

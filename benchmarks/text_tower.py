"""Which texts, how many, and how many bits for the MLP? The text tower alone, rounded in closed form.

    python benchmarks/text_tower.py MODEL --root HELD_OUT --captions-root DATA --out FOLDER

Every line: bits of the text MLP's weights, templates and number of calibration texts, and over the seeds the mean and
the spread of zero-shot top-1 less float's (the image tower being float), and the mean centred error on held-out names
in generic templates and on the captions of a set. All other layers are as the recipe says. FOLDER keeps finished
towers, so that the same command continues, and gets text_tower.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c import evaluate
from d4c.evaluate.agreement import tower_error
from d4c.experiments.cells import Place, Setup, judges, set_up, text_tower
from d4c.experiments.grid import Cell, Grid
from d4c.models import Clip, TorchEncoder, load, sites_of
from d4c.pipeline import embedding_cache
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import Rule

MLP = "text.blocks.*.mlp.*"


def quiet(*_: object) -> None:
    """Nobody watches."""


def setup_of(args: argparse.Namespace, bits: int, templates: str, texts: int, seed: int) -> Setup:
    """A cell whose last rule, which decides, is about the text MLP; calibration images do not matter."""
    cell = Cell(args.model, args.recipe, args.recipe, "one_over_f", seed)
    overrides = (f"calibrate.texts={texts}", f"calibrate.templates={templates}")
    grid = Grid("text_tower", args.dataset, (cell,), overrides=overrides)
    setup = set_up(grid, cell, Place(args.out, args.root, None, "cpu"))
    recipe = dataclasses.replace(setup.recipe, rules=(*setup.recipe.rules, Rule(MLP, weight_bits=bits)))
    return dataclasses.replace(setup, recipe=recipe, scheme=resolve_scheme(recipe, sites_of(setup.clip)))


def captions_of(args: argparse.Namespace, clip: Clip) -> NDArray[np.int64]:
    """All captions of a set, [text, token]."""
    task = evaluate.load_task(args.captions, args.captions_root or args.root, clip.preprocess)
    assert isinstance(task, evaluate.CaptionTask)
    return clip.tokenizer([text for _, texts in task.samples for text in texts])


def measure(setup: Setup, captions: NDArray[np.int64]) -> dict[str, float]:
    """Points of top-1 less float's, and centred errors, of one text tower."""
    held = judges(setup)
    plain, encoder = TorchEncoder(setup.clip), TorchEncoder(text_tower(setup, held, quiet)[0])
    cache = embedding_cache(setup.clip)
    classifiers = {
        "float": evaluate.zero_shot_classifier(plain, setup.task, quiet, cache=cache),
        "text": evaluate.zero_shot_classifier(encoder, setup.task, quiet),
    }
    caches = {"float": cache, "text": cache}
    seen = evaluate.predict({"float": plain, "text": plain}, classifiers, setup.task, quiet, caches=caches)

    def error(ids: NDArray[np.int64]) -> float:
        return tower_error(plain.encode_text(ids), encoder.encode_text(ids)).centred_error

    return {
        "points": 100 * (seen["text"].metrics["acc1"] - seen["float"].metrics["acc1"]),
        "names": error(held.texts.numpy()),
        "captions": error(captions),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipe", default="w4a8")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--dataset", default="wds/settings")
    parser.add_argument("--captions", default="wds/flickr8k-200")
    parser.add_argument("--captions-root", type=Path, help="where the captions are, if not at --root")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4])
    parser.add_argument("--templates", nargs="+", default=["generic", "captions"])
    parser.add_argument("--texts", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    found: list[dict[str, Any]] = []
    captions = captions_of(args, load(args.model))
    for bits, templates, texts in itertools.product(args.bits, args.templates, args.texts):
        runs = [measure(setup_of(args, bits, templates, texts, seed), captions) for seed in args.seeds]
        found.append({"mlp_bits": bits, "templates": templates, "texts": texts, "seeds": args.seeds, "runs": runs})
        points = [run["points"] for run in runs]
        spread = statistics.stdev(points) if len(points) > 1 else 0.0
        names, on_captions = (statistics.mean(run[key] for run in runs) for key in ("names", "captions"))
        about = f"{args.model} MLP at {bits} bits, {texts} {templates} texts"
        means = f"{statistics.mean(points):+.2f} ± {spread:.2f} points"
        print(f"{about}: {means}, error on names {names:.4f}, on captions {on_captions:.4f}", flush=True)
        result = {"model": args.model, "recipe": args.recipe, "found": found}
        (args.out / "text_tower.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

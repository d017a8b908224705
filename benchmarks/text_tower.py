"""How many texts, and how many bits for the MLP? The text tower alone, rounded in closed form, on captions and classes.

    python benchmarks/text_tower.py MODEL --root FOLDER --dataset wds/settings --out FILE.json

Every line: bits of the text MLP's weights, number of calibration texts, and over the seeds the mean and the spread of
zero-shot top-1 less float's, the image tower being float, and of the centred error on held-out names. All other layers
are as the recipe says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from d4c import calibrate, evaluate, reconstruct, synthesize
from d4c.artifact import Work, user_cache
from d4c.evaluate.agreement import tower_error
from d4c.experiments.cells import TwoTowers
from d4c.models import Clip, QuantizedClip, TorchEncoder, load, sites_of, wrap
from d4c.pipeline.basis import calibration_tokens, default_bank, fold, held_out_tokens, split_bank
from d4c.prompts import load_templates
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import Recipe, Rule, load_recipe

MLP = "text.blocks.*.mlp.*"


def with_mlp_bits(recipe: Recipe, bits: int) -> Recipe:
    """The last rule that matches decides."""
    return dataclasses.replace(recipe, rules=(*recipe.rules, Rule(MLP, weight_bits=bits)))


def quantize_text(clip: Clip, model: str, recipe: Recipe, texts: int, seed: int) -> QuantizedClip:
    bank, held_bank = split_bank(default_bank(model, recipe), recipe)
    ids = calibration_tokens(clip, bank, load_templates(recipe.calibrate.templates), texts, seed)
    scheme = resolve_scheme(recipe, sites_of(clip))
    images = synthesize.held_out_sets(clip, held_bank.prompts, user_cache(), Work())["one_over_f"]
    folded = fold(clip, recipe)
    ranges = calibrate.run(folded, images, ids, scheme, recipe.calibrate, towers=["text"])
    quantized = wrap(folded, scheme.of_tower("text"), ranges)
    return reconstruct.run(
        folded, quantized, images, ids, images, held_out_tokens(clip, held_bank), recipe.reconstruct, seed=seed,
        towers=["text"],
    )[0]  # fmt: skip


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
    torch.set_grad_enabled(False)

    clip = load(args.model)
    base = load_recipe(args.recipe, ("reconstruct.method=closed_form",))
    task = evaluate.load_task(args.dataset, args.root, clip.preprocess)
    assert isinstance(task, evaluate.ImageTask)
    held = held_out_tokens(clip, split_bank(default_bank(args.model, base), base)[1]).numpy()
    plain = TorchEncoder(clip)
    found: list[dict[str, Any]] = []
    for bits in args.bits:
        for texts in args.texts:
            runs = []
            for seed in args.seeds:
                encoder = TorchEncoder(quantize_text(clip, args.model, with_mlp_bits(base, bits), texts, seed))
                seen = evaluate.classify({"float": plain, "text": TwoTowers(plain, encoder)}, task, lambda *_: None)
                lost = 100 * (seen["text"].metrics["acc1"] - seen["float"].metrics["acc1"])
                error = tower_error(plain.encode_text(held), encoder.encode_text(held)).centred_error
                runs.append({"seed": seed, "points": lost, "error": error})
            found.append({"mlp_bits": bits, "texts": texts, "runs": runs})
            points, errors = ([run[key] for run in runs] for key in ("points", "error"))
            spread = statistics.stdev(points) if len(points) > 1 else 0.0
            about = f"{args.model} MLP at {bits} bits, {texts} texts"
            means = f"{statistics.mean(points):+.2f} ± {spread:.2f} points, error {statistics.mean(errors):.4f}"
            print(f"{about}: {means}", flush=True)
            result = {"model": args.model, "recipe": args.recipe, "found": found}
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

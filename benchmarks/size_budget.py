"""Is a size budget spent better than uniform bits spend it?

    python benchmarks/size_budget.py MODEL... --root FOLDER --out FOLDER [--dataset wds/settings] [--seeds 0 1 2]

Every model is quantized as the recipe says (`w4a8`: 4 bits, but 8 at both ends), then again with the size of that file
as its budget, on the same images. A line a run: bytes of
model.safetensors, the worst centred error over the held-out sets (whose images and texts chose the bits), and top-1
less float's on a data set that chose nothing. FOLDER keeps the artifacts, so that the same command continues, and gets
size_budget.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from d4c import pipeline


def quiet(*_: object) -> None:
    """Nobody watches."""


def quantize(model: str, recipe: str, seed: int, budget: int | None, out: Path) -> None:
    """Make the artifact, unless it is there."""
    pipeline.run(
        pipeline.prepare(
            model, recipe=recipe, out=out, pretrained=None, images=None, prompts=None, device="cpu", seed=seed,
            overrides=(), fresh=False, keep_images=False, size_budget=budget,
        )
    )  # fmt: skip


def measure(artifact: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Size, errors on held-out images and texts, and points of top-1 less float's."""
    worst = json.loads((artifact / "report.json").read_text())["evaluation"]["worst"]
    on_data = pipeline.evaluate_on_data(
        str(artifact), args.dataset, args.root, pretrained=None, against=None, device="cpu", report=quiet
    )
    return {
        "bytes": (artifact / "model.safetensors").stat().st_size,
        "image_error": worst["image_centred_error"],
        "text_error": worst["text_centred_error"],
        "points": 100 * on_data["paired"]["acc1_difference"],
        "standard_error": 100 * on_data["paired"]["acc1_standard_error"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--recipe", default="w4a8")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--dataset", default="wds/settings")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    found: list[dict[str, Any]] = []
    for model in args.models:
        for seed in args.seeds:
            budget = None
            for name in ("uniform", "mixed"):
                artifact = args.out / f"{model}-{args.recipe}-{name}-{seed}"
                quantize(model, args.recipe, seed, budget, artifact)
                run = {"model": model, "seed": seed, "bits": name, **measure(artifact, args)}
                if budget is not None and run["bytes"] > budget:
                    raise SystemExit(f"{artifact}: {run['bytes']} bytes for a budget of {budget}")
                budget = run["bytes"]
                found.append(run)
                print(
                    f"{model} seed {seed} {name}: {run['bytes']:,} bytes, centred error image {run['image_error']:.4f} "
                    f"text {run['text_error']:.4f}, {run['points']:+.2f} ± {run['standard_error']:.2f} points",
                    flush=True,
                )
                (args.out / "size_budget.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

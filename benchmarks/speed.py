"""How much less work than the paper's settings, stage by stage, measured in one run.

    python benchmarks/speed.py MODEL --out FOLDER [--threads 2] [--device cuda] [--iterations 10]

*Ours* is `d4c quantize MODEL --recipe w4a8`, run in full. *The paper's* is the recipe
`paper-w4a8` on the same kernels, histogram ranges and cached streams: what is too long is run for a few iterations and
extrapolated, and marked so. FOLDER gets speed.json and speed.md; an artifact of ours is left beside them.

A baseline that is slow by carelessness would flatter us: one layer's learning step is timed against a bare loop in
torch that does the same arithmetic.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d4c import calibrate, pipeline, reconstruct, synthesize
from d4c.artifact import Work, read_manifest
from d4c.calibrate import observe
from d4c.models import Clip, load, sites_of, wrap
from d4c.models.parts import tower_parts
from d4c.pipeline.basis import calibration_tokens, default_bank, fold, held_out_tokens, split_bank
from d4c.pipeline.places import resolve_device
from d4c.prompts import load_templates
from d4c.quantizers.range_search import NUM_SHRINKS, lp_range, lp_range_brute_force
from d4c.quantizers.ranges import Ranges
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import load_recipe
from d4c.reconstruct.learn import Samples, learn
from d4c.reconstruct.units import units_of
from d4c.synthesize.held_out import NUM_IMAGES

SAMPLE = 200_000  # values on which brute force is timed


def now() -> float:
    """Seconds, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(run: Callable[[], object]) -> float:
    start = now()
    run()
    return now() - start


def ours(model: str, out: Path, overrides: tuple[str, ...], device: str) -> dict[str, float]:
    """Seconds of each stage of a full run, and in all, from the command to the artifact."""
    artifact = out / "artifact"
    start = time.perf_counter()
    job = pipeline.prepare(
        model, recipe="w4a8", out=artifact, pretrained=None, images=None, prompts=None, device=device, seed=0,
        overrides=overrides, fresh=True, keep_images=False,
    )  # fmt: skip
    pipeline.run(job)
    total = time.perf_counter() - start
    stages = read_manifest(artifact)["stages"]
    print(f"peak memory {max(s['peak_memory_bytes'] for s in stages.values()) / 1e9:.2f} GB", flush=True)
    return {**{name: stage["seconds"] for name, stage in stages.items()}, "total": total}


class Paper:
    """The paper's settings on a model, each stage measured as far as it must be."""

    def __init__(self, model: str, iterations: int, device: torch.device) -> None:
        self.recipe = load_recipe("paper-w4a8")
        self.clip: Clip = load(model).to(device)
        self.device = device
        self.iterations = iterations
        bank = default_bank(model, self.recipe)
        self.bank, self.held_bank = split_bank(bank, self.recipe)
        self.ids = calibration_tokens(
            self.clip, self.bank, load_templates(self.recipe.calibrate.templates), self.recipe.calibrate.texts, 0
        )
        self.folded = fold(self.clip, self.recipe)
        self.scheme = resolve_scheme(self.recipe, sites_of(self.folded))
        self.images = synthesize.procedural("noise", self.recipe.synthesize.images, self.clip, 0, valid=False)

    def synthesis(self) -> float:
        """3,000 sweeps over 128 images: a micro-batch's steps, extrapolated."""
        config = dataclasses.replace(self.recipe.synthesize, images=self.recipe.synthesize.batch)

        def run(steps: int) -> float:
            few = dataclasses.replace(config, steps=steps)
            return seconds(lambda: synthesize.run(self.clip, self.bank.prompts, few, seed=0))

        run(1)  # warm
        a_step = (run(1 + self.iterations) - run(1)) / self.iterations
        return a_step * self.recipe.synthesize.steps * self.recipe.synthesize.images / config.images

    def ranges(self) -> tuple[Ranges, float, float]:
        """All ranges by histogram, measured; and by scoring every candidate on every value, extrapolated."""
        values = 0

        def counting(rows: Tensor, grid: Any) -> Any:
            nonlocal values
            values += rows.numel()
            return lp_range(rows, grid)

        observe.OBSERVERS["lp"] = counting
        start = now()
        try:
            ranges = calibrate.run(self.folded, self.images, self.ids, self.scheme, self.recipe.calibrate)
        finally:
            observe.OBSERVERS["lp"] = lp_range
        by_histogram = now() - start
        grid = next(iter(self.scheme.inputs.values())).grid
        brute = seconds(lambda: lp_range_brute_force(torch.randn(1, SAMPLE, device=self.device), grid)) / SAMPLE
        candidates = NUM_SHRINKS * (grid.qmax + 1)
        print(f"ranges: {values / 1e6:.0f} M values, {candidates} candidates each", flush=True)
        return ranges, by_histogram, by_histogram + brute * values

    def reconstruction(self, ranges: Ranges) -> float:
        """20,000 iterations of every unit: a few of each, extrapolated; what happens between units is measured."""
        quantized = wrap(self.folded, self.scheme, ranges)
        held = synthesize.procedural("one_over_f", NUM_IMAGES, self.clip, 0, valid=True)  # what they show takes no time
        config = dataclasses.replace(self.recipe.reconstruct, iterations=self.iterations)
        marks: list[float] = []

        def mark(label: str, _: int, __: int) -> None:
            if label == "reconstruct":
                marks.append(now())

        whole = seconds(
            lambda: reconstruct.run(
                self.folded, quantized, self.images, self.ids, held, held_out_tokens(self.clip, self.held_bank), config,
                seed=0, padding=self.recipe.calibrate.padding, work=Work(None, mark),
            )
        )  # fmt: skip
        units = [marks[i : i + self.iterations] for i in range(0, len(marks), self.iterations)]
        learning = sum(unit[-1] - unit[0] for unit in units) * self.iterations / (self.iterations - 1)
        print(f"reconstruction: {len(units)} units", flush=True)
        return whole - learning + learning / self.iterations * self.recipe.reconstruct.iterations

    def against_a_bare_loop(self, ranges: Ranges) -> float:
        """Time of a learning step of one layer over that of a loop that does nothing else."""
        config = dataclasses.replace(self.recipe.reconstruct, iterations=50, keep_quantized=1.0, error="channels")
        quantized = wrap(self.folded, self.scheme, ranges)
        part = tower_parts(quantized, "text")[1]
        unit = next(u for u in units_of(part, quantized, self.folded, "layer") if u.name.endswith("mlp.fc1"))
        (site,) = unit.weights
        x = torch.randn(512, 77, unit.float_weight(site).shape[1], device=self.device)
        samples = Samples(x, None, torch.cat([unit.reference(part) for part in x.split(64)]).detach(), None)
        generator = torch.Generator().manual_seed(0)

        def ours() -> None:
            learn(unit, samples, config.batch, config, scale_learning_rate=4e-6, generator=generator,
                  report=lambda _: None)  # fmt: skip

        def bare() -> None:
            bare_loop(unit.float_layer(site), unit.grid_weight(site).affine, samples, config.batch, config.iterations)

        ours()  # warm
        bare()
        return min(seconds(ours) for _ in range(3)) / min(seconds(bare) for _ in range(3))


def bare_loop(layer: nn.Module, affine: Any, samples: Samples, batch: int, iterations: int) -> None:
    """AdaRound of one linear with a learned input scale, written out."""
    weight, bias = layer.weight.detach(), layer.bias.detach()  # type: ignore[operator]
    scaled = weight / affine.scale
    floor = scaled.floor()
    alpha = (-torch.log(1.2 / (scaled - floor + 0.1) - 1)).requires_grad_()
    scale = (samples.quantized.abs().max() / 255).detach().clone().requires_grad_()
    optimizers = [torch.optim.Adam([alpha], lr=1e-3), torch.optim.Adam([scale], lr=4e-6)]
    for step in range(1, iterations + 1):
        index = torch.randint(len(samples), (batch,), device=weight.device)
        x, target = samples.quantized[index], samples.target[index]
        g = 1 / (x.numel() * 255) ** 0.5
        s = scale.abs() * g + (scale.abs() * (1 - g)).detach()
        codes = x / s
        x = ((codes + (codes.round() - codes).detach()) + 128).clamp(0, 255).sub(128).mul(s)
        h = (alpha.sigmoid() * 1.2 - 0.1).clamp(0, 1)
        w = (
            (floor + h + affine.zero_point).clamp(affine.grid.qmin, affine.grid.qmax) - affine.zero_point
        ) * affine.scale
        loss = (nn.functional.linear(x, w, bias) - target).square().sum(dim=-1).mean()
        if step >= 0.2 * iterations:
            beta = 20 - 18 * (step - 0.2 * iterations) / (0.8 * iterations)
            soft = (alpha.sigmoid() * 1.2 - 0.1).clamp(0, 1)
            loss = loss + 0.01 * (1 - (2 * soft - 1).abs().pow(beta)).sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def table(mine: dict[str, float], paper: dict[str, float], ratio: float) -> str:
    """Markdown; what was extrapolated carries a star."""

    def time_of(value: float) -> str:
        return f"{value:,.0f} s" if value < 7200 else f"{value / 3600:,.1f} h"

    rows = [
        ("images", mine["synthesize"], paper["synthesis"], True),
        ("ranges", mine["calibrate"], paper["ranges"], False),
        ("rounding", mine["reconstruct"], paper["reconstruction"], True),
        ("held-out images, evaluation, loading", mine["total"] - mine["synthesize"] - mine["calibrate"]
         - mine["reconstruct"], 0.0, False),
    ]  # fmt: skip
    lines = ["| stage | ours | the paper's settings | ratio |", "|---|---:|---:|---:|"]
    for name, a, b, star in rows:
        share = f"{b / a:,.0f}" if a > 0 and b > 0 else ""
        lines.append(f"| {name} | {time_of(a)} | {time_of(b)}{'*' if star else ''} | {share} |")
    for name, key in (("in all", "total"), ("in all, ranges searched exhaustively by the paper", "exhaustive")):
        lines.append(
            f"| {name} | {time_of(mine['total'])} | {time_of(paper[key])}* | {paper[key] / mine['total']:,.0f} |"
        )
    return "\n".join([*lines, "", "\\* extrapolated from measured iterations.",
                      f"A learning step takes {ratio:.2f} times a bare loop's."]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", help="as in d4c quantize")
    parser.add_argument("--iterations", type=int, default=10, help="measured of each long part, from 2")
    parser.add_argument("--set", action="append", default=[], help="of our recipe, as in d4c quantize")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)

    device = resolve_device(args.device)
    mine = ours(args.model, args.out, tuple(args.set), args.device)
    print("ours", {name: round(value, 1) for name, value in mine.items()}, flush=True)
    paper = Paper(args.model, args.iterations, device)
    found = {"synthesis": paper.synthesis()}
    print(f"the paper's images {found['synthesis']:.0f} s", flush=True)
    ranges, found["ranges"], exhaustive = paper.ranges()
    print(f"the paper's ranges {found['ranges']:.0f} s, exhaustively {exhaustive:.0f} s", flush=True)
    ratio = paper.against_a_bare_loop(ranges)
    print(f"a learning step takes {ratio:.2f} times a bare loop's", flush=True)
    found["reconstruction"] = paper.reconstruction(ranges)
    found["total"] = found["synthesis"] + found["ranges"] + found["reconstruction"]
    found["exhaustive"] = found["total"] - found["ranges"] + exhaustive
    result = {
        "model": args.model, "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(), "iterations_measured": args.iterations, "ours": mine,
        "paper": found, "step_over_bare_loop": ratio,
    }  # fmt: skip
    (args.out / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(mine, found, ratio)
    (args.out / "speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""Draw what quantizing takes: time against the number of images, the model, and the number of processes.

    python benchmarks/plot_cost.py --images 32=RUN... --models ViT-B/32=RUN... --processes 1=RUN... --out docs/cost.png

RUN is an artifact, whose manifest holds each stage's seconds, or what `benchmarks/speed.py` left, which has the paper's
settings too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d4c.artifact import read_manifest

STAGES = {"synthesize": "images", "calibrate": "ranges", "reconstruct": "rounding", "rest": "everything else"}
COLOURS = ("#4477aa", "#ccbb44", "#ee6677", "#bbbbbb")


def stages_of(run: Path) -> dict[str, float]:
    """Seconds of the stages of `STAGES`."""
    artifact = run / "artifact" if (run / "speed.json").exists() else run
    seconds = {name: stage["seconds"] for name, stage in read_manifest(artifact)["stages"].items()}
    rest = sum(seconds.values()) - sum(seconds.get(name, 0.0) for name in STAGES)
    return {name: rest if name == "rest" else seconds.get(name, 0.0) for name in STAGES}


def total_of(run: Path, whose: str) -> float | None:
    """Seconds in all of `ours` or the `paper`'s settings; of a mere artifact, ours alone."""
    path = run / "speed.json"
    if path.exists():
        return float(json.loads(path.read_text())[whose]["total"])
    return sum(stages_of(run).values()) if whose == "ours" else None


def draw_stages(axes: Axes, runs: dict[str, Path], what: str) -> None:
    """A bar for each run, its stages on top of each other, in minutes."""
    below = [0.0] * len(runs)
    for name, colour in zip(STAGES, COLOURS, strict=True):
        minutes = [stages_of(run)[name] / 60 for run in runs.values()]
        axes.bar(list(runs), minutes, bottom=below, color=colour, label=STAGES[name], width=0.6)
        below = [a + b for a, b in zip(below, minutes, strict=True)]
    axes.set_xlabel(what)
    axes.set_ylabel("minutes")


def draw_models(axes: Axes, runs: dict[str, Path]) -> None:
    """Ours and the paper's settings side by side, on a scale of powers."""
    for shift, whose, label, colour in (
        (-0.2, "ours", "d4c", "#4477aa"),
        (0.2, "paper", "the paper's settings (extrapolated)", "#bbbbbb"),
    ):
        seconds = [total_of(run, whose) for run in runs.values()]
        known = [(i + shift, s / 60) for i, s in enumerate(seconds) if s is not None]
        bars = axes.bar([i for i, _ in known], [m for _, m in known], width=0.4, color=colour, label=label)
        axes.bar_label(bars, [f"{m:.0f} min" if m < 100 else f"{m / 60:.0f} h" for _, m in known], fontsize=8)
    axes.set_xticks(range(len(runs)), list(runs))
    axes.set_yscale("log")
    axes.set_ylabel("minutes")
    axes.set_xlabel("model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "models", "processes"):
        parser.add_argument(f"--{name}", nargs="+", required=True, metavar="LABEL=RUN")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    images, models, processes = (
        {label: Path(run) for label, run in (pair.split("=", 1) for pair in pairs)}
        for pairs in (args.images, args.models, args.processes)
    )

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.5, 1))
    draw_stages(left, images, "calibration images")
    draw_models(middle, models)
    draw_stages(right, processes, "processes of one thread")
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()

"""The result of `d4c bench` as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d4c.artifact.work import appearing_whole
from d4c.errors import MissingExtraError
from d4c.experiments.bench.processor import in_words
from d4c.experiments.bench.report import worst_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers tell apart; each variant has its own marker too.
COLOURS = ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#CC79A7", "#7F7F7F", "#009E73", "#8B5A2B")
MARKERS = ("s", "o", "^", "X", "P", "v", "D", "<", ">")
TICKS = [mantissa * 10.0**exponent for exponent in range(-5, 3) for mantissa in (1, 2, 5)]
Looks = Mapping[str, tuple[str, str]]


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: for each tower the speed of every variant, and speed against error.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise MissingExtraError("plots", "drawing the plot") from error
    towers = result["towers"]
    names = list(dict.fromkeys(name for tower in towers.values() for name in tower["variants"]))
    looks = {name: (COLOURS[i % 9], MARKERS[i % 9]) for i, name in enumerate(names)}
    figure = Figure(figsize=(12, 0.9 + 3.9 * len(towers)), dpi=110, layout="constrained")
    title = f"{result['about']['model']}, {result['about']['recipe']}\n{in_words(result['machine'])}"
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(len(towers), 2, squeeze=False, width_ratios=(3, 2))
    for (bars, scatter), (kind, tower) in zip(grid, towers.items(), strict=True):
        _speeds(bars, kind, tower["variants"], looks)
        _speed_and_error(scatter, kind, tower["variants"], looks)
    handles = [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, (c, m) in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=9, fontsize=8, frameon=False)
    with appearing_whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _speeds(axes: Axes, kind: str, variants: Mapping[str, Any], looks: Looks) -> None:
    """Bars, one a variant, for each number of threads and size of batch."""
    settings = [_setting(run) for run in next(iter(variants.values()))["runs"]]
    x, width = np.arange(len(settings)), 0.8 / len(variants)
    for i, (name, about) in enumerate(variants.items()):
        ratios = [run["ratio"] for run in about["runs"]]
        axes.bar(x + (i - (len(variants) - 1) / 2) * width, ratios, width, color=looks[name][0])
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(x, settings)
    _style(axes, f"{kind} tower", "", f"times as fast as {next(iter(variants))}")


def _speed_and_error(axes: Axes, kind: str, variants: Mapping[str, Any], looks: Looks) -> None:
    """The largest batch on one thread, or the last setting; a float model, whose error is all but 0, is left out."""
    runs = next(iter(variants.values()))["runs"]
    chosen = max(range(len(runs)), key=lambda i: (runs[i]["threads"] == 1, i))
    shown = {name: error for name, about in variants.items() if (error := worst_error(about)) and error > 1e-4}
    for name, error in shown.items():
        colour, marker = looks[name]
        axes.scatter(variants[name]["runs"][chosen]["ratio"], error, s=55, color=colour, marker=marker)
    x = f"times as fast as {next(iter(variants))}, {_setting(runs[chosen])}".replace("\n", ", ")
    _style(axes, f"{kind} tower: lower right is better", x, "centred error, worst set")
    if shown:
        low, high = min(shown.values()) / 1.6, max(shown.values()) * 1.6
        axes.set_yscale("log")
        axes.set_yticks([t for t in TICKS if low <= t <= high], [f"{t:g}" for t in TICKS if low <= t <= high])
        axes.set_yticks([], minor=True)
        axes.set_ylim(low, high)
    axes.set_xlim(0, 1.1 * max(variants[name]["runs"][chosen]["ratio"] for name in shown) if shown else 1)


def _setting(run: Mapping[str, Any]) -> str:
    threads = {0: "all threads", 1: "1 thread"}.get(run["threads"], f"{run['threads']} threads")
    return f"{threads}\nbatch {run['batch']}"


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

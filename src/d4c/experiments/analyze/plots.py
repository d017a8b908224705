"""The pictures of an analysis, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d4c.experiments.analyze.patches import KINDS, patch_layers, patches_by_layer, split_patches
from d4c.experiments.analyze.request import Request
from d4c.experiments.analyze.sensitivity import TOWERS, layer_depth, layer_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, grey for their yellow: colour-blind readers tell them apart; each set has its own marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 110
NUM_EXAMPLES = 8


def draw(result: Mapping[str, Any], request: Request) -> dict[str, Figure]:
    """All pictures that the measured parts allow, by file name."""
    names = list(request.sets)
    pictures: dict[str, Figure] = {}
    if "coverage" in result:
        pictures["coverage"] = coverage(result["coverage"])
    if "patches" in result:
        pictures["patches"] = patches(result["patches"])
        pictures["patch-examples"] = patch_examples(request)
    if "map" in result:
        pictures["map"] = feature_map(result["map"], names)
    if "sensitivity" in result:
        pictures["sensitivity-layers"] = layers(result["sensitivity"])
        pictures["sensitivity-kinds"] = kinds(result["sensitivity"])
        pictures["bottlenecks"] = bottlenecks(result["sensitivity"]["summary"], result["about"]["recipe"])
    if "text-mlp" in result:
        pictures["text-mlp"] = text_mlp(result["text-mlp"])
    if "transfer" in result:
        pictures["transfer"] = transfer(result["transfer"])
    return pictures


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _style(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def coverage(result: Mapping[str, Any]) -> Figure:
    """Histograms of cosines, divergence from the reference, share of the bank that is covered."""
    figure = _figure(11, 3.6)
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    edges, sets = np.asarray(result["edges"]), result["sets"]
    for i, (name, about) in enumerate(sets.items()):
        counts = np.asarray(about["counts"], float)
        density = counts / counts.sum() / np.diff(edges)
        left.stairs(density, edges, color=COLOURS[i % 8], label=name, linewidth=1.8)
    left.legend(fontsize=8, frameon=False)
    _style(left, "cosine of every image to every prompt", "cosine", "density")
    names, y = list(sets), np.arange(len(sets))
    colours = [COLOURS[i % 8] for i in range(len(names))]
    if result["kl_floor"] is not None:
        values = [about["kl_to_reference"] for about in sets.values()]
        middle.barh(y, values, color=colours)
        middle.axvline(result["kl_floor"], color="grey", linestyle="--", linewidth=1)
        _style(middle, "KL to the reference (dashed: floor)", "nats")
    else:
        middle.barh(y, [about["mean_best_cosine"] for about in sets.values()], color=colours)
        _style(middle, "cosine to the best prompt, mean", "cosine")
    right.barh(y, [100 * about["covered"] for about in sets.values()], color=colours)
    right.axvline(100 * next(iter(sets.values()))["coverable"], color="grey", linestyle="--", linewidth=1)
    _style(right, "prompts covered (dashed: limit)", "% of the bank")
    for axes in (middle, right):
        axes.set_yticks(y, names, fontsize=8)
        axes.invert_yaxis()
    return figure


def patches(result: Mapping[str, Any]) -> Figure:
    """Variance of patch similarities by layer, for the three kinds of pairs."""
    figure = _figure(11, 3.6)
    all_axes = figure.subplots(1, 3, sharey=True)
    titles = {
        "foreground": "both patches in the foreground",
        "background": "both in the background",
        "across": "one in each",
    }
    for axes, kind in zip(all_axes, KINDS, strict=True):
        for i, (name, about) in enumerate(result.items()):
            by_layer = about["layers"]
            x = np.arange(len(by_layer))
            values = [_number(layer[kind]["variance"]) for layer in by_layer.values()]
            spread = [_number(layer[kind]["variance_standard_error"]) for layer in by_layer.values()]
            axes.errorbar(
                x, values, yerr=spread, color=COLOURS[i % 8], marker=MARKERS[i % 8], markersize=4, linewidth=1.4,
                capsize=2, label=name,
            )  # fmt: skip
        labels = [label.split()[-1] for label in next(iter(result.values()))["layers"]]
        axes.set_xticks(np.arange(len(labels)), labels)
        _style(axes, titles[kind], next(iter(next(iter(result.values()))["layers"])).split()[0])
    all_axes[0].set_ylabel("variance of cosine similarity\n(mean over images, bars: standard error)", fontsize=9)
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    return figure


def patch_examples(request: Request) -> Figure:
    """Some images of each set, and below them only what the split calls foreground."""
    clip = request.clip
    label, module = list(patch_layers(clip).items())[-1]
    num = min(NUM_EXAMPLES, len(next(iter(request.sets.values()))))
    figure = _figure(1.1 * num, 2.5 * len(request.sets))
    for axes, (name, images) in zip(figure.subplots(len(request.sets), 1, squeeze=False)[:, 0], request.sets.items(),
                                    strict=True):  # fmt: skip
        few = images.take(slice(num))
        x = patches_by_layer(clip, few.pixels, {label: module})[label]
        side = round(x.shape[1] ** 0.5)
        foreground = split_patches(x, side, side).numpy().reshape(num, side, side)
        pictures = clip.preprocess.denormalize(few.pixels.numpy()).clip(0, 1).transpose(0, 2, 3, 1)
        axes.imshow(_with_foreground(pictures, foreground), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"{name}; below: the foreground by the split at {label}", fontsize=9, loc="left")
    return figure


def _with_foreground(pictures: NDArray[np.floating[Any]], foreground: NDArray[np.bool_]) -> NDArray[np.floating[Any]]:
    """A row of pictures over the same row with a faint background.

    Args:
        pictures: [image, height, width, 3]; foreground: by patch, [image, row, column].

    Returns:
        one picture, [height, width, 3].
    """
    size, side = pictures.shape[1], foreground.shape[1]
    patch = np.arange(size) * side // size  # the patch of each pixel row
    mask = foreground[:, patch][:, :, patch, None]  # [image, height, width, 1]
    rows = [pictures, np.where(mask, pictures, 0.85 + 0.15 * pictures)]
    gap = size // 16
    padded = [np.pad(row, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1) for row in rows]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)


def feature_map(result: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """A scatter plot for each plane."""
    planes = result["planes"]
    figure = _figure(5.2 * len(planes), 4.6)
    all_axes = figure.subplots(1, len(planes), squeeze=False)[0]
    for axes, (method, by_set) in zip(all_axes, planes.items(), strict=True):
        for i, name in enumerate(names):
            points = np.asarray(by_set[name])
            axes.scatter(
                points[:, 0], points[:, 1], s=16, color=COLOURS[i % 8], marker=MARKERS[i % 8], alpha=0.75,
                linewidths=0, label=name,
            )  # fmt: skip
        if method == "PCA":
            first, second = (100 * v for v in result["pca_variance"])
            _style(axes, "PCA", f"1st component, {first:.0f} % of variance", f"2nd component, {second:.0f} %")
        else:
            _style(axes, f"{method} (only neighbourhoods mean something)")
            axes.set_xticks([])
            axes.set_yticks([])
    all_axes[0].legend(fontsize=8, frameon=False)
    return figure


def layers(result: Mapping[str, Any]) -> Figure:
    """The error of each layer alone, by kind and block, at the fewest bits measured."""
    from matplotlib.colors import LogNorm

    bits = min(result["one"]["weight"], key=int)
    errors = {layer: cell["error"] for layer, cell in result["one"]["weight"][bits].items()}
    positive = [e for e in errors.values() if e > 0] or [1.0]
    norm = LogNorm(min(positive), max(positive) * 1.001)
    tables = {tower: _table({k: v for k, v in errors.items() if k.startswith(f"{tower}.")}) for tower in TOWERS}
    widths = [max(3, len(columns)) for _, columns, _ in tables.values()]
    figure = _figure(3.4 + 0.42 * sum(widths), 1.4 + 0.3 * max(len(rows) for rows, _, _ in tables.values()))
    all_axes = figure.subplots(1, len(tables), width_ratios=widths)
    image = None
    for axes, (tower, (rows, columns, values)) in zip(all_axes, tables.items(), strict=True):
        image = axes.imshow(np.ma.masked_invalid(values), norm=norm, cmap="viridis", aspect="auto")
        axes.set_xticks(np.arange(len(columns)), columns, rotation=90 if len(columns) > 14 else 0)
        axes.set_yticks(np.arange(len(rows)), [row.removeprefix(f"{tower} ") for row in rows])
        _style(axes, f"{tower} tower", "block (–: outside the blocks)")
    assert image is not None
    bar = figure.colorbar(image, ax=all_axes)
    bar.set_label(f"centred error, one weight at {bits} bits", fontsize=9)
    return figure


def _table(errors: Mapping[str, float]) -> tuple[list[str], list[str], Any]:
    rows = list(dict.fromkeys(layer_kind(layer) for layer in errors))
    columns = list(dict.fromkeys(layer_depth(layer) or "–" for layer in errors))
    values = np.full((len(rows), len(columns)), np.nan)
    for layer, error in errors.items():
        values[rows.index(layer_kind(layer)), columns.index(layer_depth(layer) or "–")] = error or np.nan
    return rows, columns, values


def kinds(result: Mapping[str, Any]) -> Figure:
    """Error of each kind of layer against bits: weights alone, and weights with their inputs."""
    figure = _figure(11, 7)
    grid = figure.subplots(2, 2, sharey="row", sharex=True)
    for row, tower in zip(grid, TOWERS, strict=True):
        for axes, (mode, by_bits) in zip(row, result["summary"]["kinds"].items(), strict=True):
            bits = sorted(by_bits, key=int)
            chosen = [kind for kind in by_bits[bits[0]] if kind.startswith(f"{tower} ")]
            for i, kind in enumerate(chosen):
                values = [max(by_bits[b][kind]["root_sum_square"], 1e-9) for b in bits]
                axes.plot(
                    [int(b) for b in bits], values, color=COLOURS[i % 8], marker=MARKERS[i % 8], markersize=5,
                    linewidth=1.4, linestyle="-" if i < 8 else ":", label=kind.removeprefix(f"{tower} "),
                )  # fmt: skip
            axes.set_yscale("log")
            axes.set_xticks([int(b) for b in bits])
            _style(axes, f"{tower}: {mode.replace('+', ' and ')} quantized", "bits")
        row[0].set_ylabel("root of summed squared\ncentred errors", fontsize=9)
        row[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def bottlenecks(summary: Mapping[str, Any], recipe: str) -> Figure:
    """The layers whose return to float gives back most of the recipe's error."""
    figure = _figure(11, 3.9)
    all_axes = figure.subplots(1, 2)
    for axes, tower in zip(all_axes, TOWERS, strict=True):
        ranked = summary["bottlenecks"][tower]
        y = np.arange(len(ranked))
        axes.barh(y, [100 * entry["returned"] for entry in ranked], color=COLOURS[0])
        labels = [f"{e['layer'].removeprefix(tower + '.')} ({e['bits']})" for e in ranked]
        axes.set_yticks(y, labels, fontsize=8)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        _style(axes, f"{tower} tower of {recipe}: one weight back in float", "% of the squared error that goes")
    return figure


def text_mlp(result: Mapping[str, Any]) -> Figure:
    """Error and, with a data set, top-1 against the bits of the text MLP's weights."""
    some = next(iter(result["nearest"].values()))
    figure = _figure(9.5 if "acc1" in some else 5.2, 3.6)
    all_axes = figure.subplots(1, 2 if "acc1" in some else 1, squeeze=False)[0]
    labels = {"nearest": "round to nearest", "learned": "learned rounding"}
    for i, (method, by_bits) in enumerate(result.items()):
        bits = sorted(by_bits, key=int, reverse=True)
        x, shift = np.arange(len(bits)), 0.08 * (i - 0.5)
        look: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "label": labels[method], "linewidth": 1.4}
        all_axes[0].plot(x, [by_bits[b]["centred_error"] for b in bits], **look)
        if len(all_axes) > 1:
            values = [100 * by_bits[b]["acc1_difference"] for b in bits]
            spread = [100 * by_bits[b]["acc1_standard_error"] for b in bits]
            all_axes[1].errorbar(x + shift, values, yerr=spread, capsize=3, **look)
        for axes in all_axes:
            axes.set_xticks(x, ["float" if b == "32" else b for b in bits])
    _style(all_axes[0], "held-out texts", "bits of the text MLP's weights", "centred error of the text tower")
    all_axes[0].set_ylim(bottom=0)
    if len(all_axes) > 1:
        all_axes[1].axhline(0, color="grey", linewidth=0.8, linestyle="--")
        title = "zero-shot top-1 against float\n(bars: paired standard error)"
        _style(all_axes[1], title, "bits of the text MLP's weights", "points")
    all_axes[0].legend(fontsize=8, frameon=False)
    return figure


def transfer(result: Mapping[str, Any]) -> Figure:
    """Errors by calibrating and judging set, a table in colours for each recipe."""
    names = list(next(iter(result.values())))
    side = 1.7 + 0.72 * len(names)
    figure = _figure(side * len(result), side * 0.95)
    all_axes = figure.subplots(1, len(result), squeeze=False)[0]
    for axes, (recipe, rows) in zip(all_axes, result.items(), strict=True):
        values = np.asarray([[rows[row]["errors"][col] for col in names] for row in names])
        relative = values / np.diag(values)[None, :]
        axes.imshow(np.log2(relative), cmap="PuOr_r", vmin=-1, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            dark = not -0.5 < np.log2(relative[i, j]) < 0.75
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axes.set_xticks(np.arange(len(names)), names, rotation=40, ha="right")
        axes.set_yticks(np.arange(len(names)), names)
        _style(axes, f"{recipe}: centred error", "judged on", "calibrated on")
    return figure


def _number(value: float | None) -> float:
    return float("nan") if value is None else value

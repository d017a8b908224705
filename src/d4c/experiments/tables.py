"""Results of a grid as figures, Markdown and a plot: mean, spread over seeds, paired tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.errors import MissingExtraError

Results = Sequence[dict[str, Any]]
HEADER = (
    "| images | top-1 against float in points, mean ± spread over seeds | test images' error |"
    " scores' error |"
    " lead over the row above (p) | codes changed | held-out error |"
)
TOWERS = {"both": "both towers quantized", "image": "image tower quantized, text tower float"}


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one model with one recipe, over its seeds.

    Args:
        losses: accuracy minus the float model's, a number a seed, in points; mean, spread: theirs, the spread with
            n - 1, NaN for one seed; image_error: paired standard error over the images, pooled over the seeds.
        score_error: centred error of the images' scores against the float model's, mean over the seeds.
        against: the method that comes before it in the grid, or None; difference: its mean lead over that, in points,
            on the same seeds; p: of a paired t-test over the seeds, NaN below two.
        codes_changed, error_ratio: of the image tower's units at the fewest bits, means over seeds; None without
            reconstruction.
    """

    model: str
    recipe: str
    method: str
    tower: str
    losses: tuple[float, ...]
    mean: float
    spread: float
    image_error: float
    score_error: float
    against: str | None
    difference: float
    p: float
    codes_changed: float | None
    error_ratio: float | None


def rows_of(results: Results) -> list[Row]:
    """A row for each model, recipe, tower and method, in the order of the grid; refused cells give none."""
    grouped: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for result in results:
        if "refused" not in result:
            cell = result["cell"]
            grouped.setdefault((cell["model"], cell["label"]), {}).setdefault(cell["method"], []).append(result)
    rows = []
    for (model, recipe), methods in grouped.items():
        for tower in TOWERS:
            before: str | None = None
            for method, cells in methods.items():
                rows.append(_row(model, recipe, method, tower, cells, before, methods.get(before or "", [])))
                before = method
    return rows


def _row(model: str, recipe: str, method: str, tower: str, cells: Results, before: str | None, others: Results) -> Row:
    losses, rivals = _losses(cells, tower), _losses(others, tower)
    leads = [losses[seed] - rivals[seed] for seed in losses if seed in rivals]
    fewest = [_fewest_bits(c["reconstruction"].get("image", {})) for c in cells if c["reconstruction"].get("image")]
    values = np.asarray(list(losses.values()))
    return Row(
        model, recipe, method, tower, tuple(values.tolist()), float(values.mean()), _std(values),
        _image_error(cells, tower), float(np.mean([c["predictions"][tower]["score_error"] for c in cells])),
        before, float(np.mean(leads)) if leads else float("nan"), paired_p(leads),
        float(np.mean([f["codes_changed"] for f in fewest])) if fewest else None,
        float(np.mean([f["error_ratio"] for f in fewest])) if fewest else None,
    )  # fmt: skip


def _losses(cells: Results, tower: str) -> dict[int, float]:
    """Accuracy minus the float model's by seed, in points."""
    return {c["cell"]["seed"]: 100 * (_acc(c, tower) - _acc(c, "float")) for c in cells}


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of a t-test that paired differences have mean 0; NaN below two, or where they do not vary."""
    if len(differences) < 2 or float(np.std(differences)) == 0:
        return float("nan")
    try:
        from scipy.stats import ttest_1samp
    except ImportError as error:
        raise MissingExtraError("eval", "a paired test") from error
    return float(ttest_1samp(differences, 0).pvalue)


def _image_error(cells: Results, tower: str) -> float:
    """Standard error of the mean loss that comes from the choice of test images, in points.

    d_i is image i's difference to float, averaged over the seeds; std(d) / sqrt(images).
    """
    differences = np.mean([_right(c, tower) - _right(c, "float") for c in cells], axis=0)  # [image]
    return 100 * _std(differences) / float(np.sqrt(len(differences)))


def _right(cell: dict[str, Any], tower: str) -> NDArray[np.float64]:
    return np.asarray([float(c) for c in cell["predictions"][tower]["right"]])


def _acc(cell: dict[str, Any], tower: str) -> float:
    return float(cell["predictions"][tower]["acc1"])


def _fewest_bits(by_bits: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = by_bits[min(by_bits, key=int)]
    return found


def _std(values: NDArray[np.float64]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def as_json(rows: Sequence[Row], results: Results) -> dict[str, Any]:
    """Everything the tables say, and what was refused; null where there is no figure."""
    refused = [{**r["cell"], "reason": r["refused"]} for r in results if "refused" in r]
    floats = {r["cell"]["model"]: _acc(r, "float") for r in results if "refused" not in r}
    said = [{key: None if value != value else value for key, value in asdict(row).items()} for row in rows]  # NaN
    return {"float": floats, "rows": said, "refused": refused}


def markdown(rows: Sequence[Row], results: Results) -> str:
    """Tables, a section for each model, recipe and tower."""
    floats = as_json((), results)["float"]
    lines = []
    for model, recipe, tower in dict.fromkeys((r.model, r.recipe, r.tower) for r in rows):
        chosen = [r for r in rows if (r.model, r.recipe, r.tower) == (model, recipe, tower)]
        lines += [f"### {model}, {recipe}, {TOWERS[tower]} (float {floats[model]:.2%})", ""]
        lines += [HEADER, "|---|---:|---:|---:|---:|---:|---:|"]
        lines += [_line(row) for row in chosen] + [""]
    reasons = sorted(
        {f"{r['cell']['model']}, {r['cell']['method']}: {r['refused']}" for r in results if "refused" in r}
    )
    return "\n".join([*lines, *(f"- not possible: {reason}" for reason in reasons)]).rstrip() + "\n"


def _line(row: Row) -> str:
    spread = "" if np.isnan(row.spread) else f" ± {row.spread:.2f}"
    lead = "" if np.isnan(row.difference) else f"{row.difference:+.2f}"
    lead += "" if np.isnan(row.p) else f" ({row.p:.2f})"
    codes = "" if row.codes_changed is None else f"{row.codes_changed:.0%}"
    error = "" if row.error_ratio is None else f"{row.error_ratio:.2f}"
    figures = f"{row.mean:+.2f}{spread} | {row.image_error:.2f} | {row.score_error:.3f}"
    return f"| {row.method} | {figures} | {lead} | {codes} | {error} |"


def check_installed() -> None:
    """Raise `MissingExtraError` unless what tests and draws is there."""
    for package, extra, purpose in (("scipy", "eval", "a paired test"), ("matplotlib", "plots", "a plot")):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(extra, purpose)


def plot(rows: Sequence[Row], path: Path) -> None:
    """A panel for each model and recipe: every seed a dot, the mean a bar, both towers and the image tower alone."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError("plots", "a plot") from error
    panels = list(dict.fromkeys((r.model, r.recipe) for r in rows))
    models, recipes = list(dict.fromkeys(m for m, _ in panels)), list(dict.fromkeys(r for _, r in panels))
    most = max(len({r.method for r in rows if (r.model, r.recipe) == panel}) for panel in panels)
    figure, axes = plt.subplots(
        len(models), len(recipes), figsize=(4.2 * len(recipes), (0.36 * most + 1.3) * len(models) + 0.4), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for i, model in enumerate(models):
        for j, recipe in enumerate(recipes):
            _panel(axes[i][j], [r for r in rows if (r.model, r.recipe) == (model, recipe)], f"{model}, {recipe}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Any, rows: Sequence[Row], title: str) -> None:
    methods = list(dict.fromkeys(r.method for r in rows))
    if not methods:
        axis.axis("off")
        return
    for tower, colour, shift in (("both", "#0072b2", -0.17), ("image", "#e69f00", 0.17)):
        for row in (r for r in rows if r.tower == tower):
            y = methods.index(row.method) + shift
            axis.plot(row.losses, [y] * len(row.losses), "o", color=colour, markersize=4, alpha=0.7)
            axis.plot([row.mean], [y], "|", color=colour, markersize=12, markeredgewidth=2,
                      label=TOWERS[tower] if row.method == methods[0] else None)  # fmt: skip
    axis.axvline(0, color="0.6", linewidth=1)
    axis.set(yticks=range(len(methods)), yticklabels=methods, title=title, xlabel="top-1 against float, points")
    axis.set_ylim(len(methods) - 0.5, -0.5)  # the first on top

"""Sentences that say what was measured, built from an analysis' JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from d4c.experiments.analyze.patches import KINDS
from d4c.experiments.analyze.transfer import relative_to_own

Result = Mapping[str, Any]
ENOUGH_LOSS = 0.005  # half a point of top-1: what fewer bits in the text MLP may cost


def coverage(result: Result, about: Result) -> list[str]:
    """Which sets' images look to the model like its prompts, as real ones do."""
    sets, reference = result["sets"], about["reference"]
    sentences = [
        f"{result['images']} images of each set against {result['prompts']} prompts. "
        + "; ".join(
            f"{name}: {s['covered']:.0%} of the prompts are some image's best "
            f"(evenly used they would be {s['effective_prompts']:.0f}), "
            f"mean cosine to the best prompt {s['mean_best_cosine']:.3f}"
            for name, s in sets.items()
        )
        + f". No set of this size could reach more than {next(iter(sets.values()))['coverable']:.0%}."
    ]
    if reference is not None:
        others = sorted((s["kl_to_reference"], name) for name, s in sets.items() if name != reference)
        listed = ", ".join(f"{name} {kl:.3f}" for kl, name in others)
        sentences.append(
            f"KL divergence of the cosines' histogram to {reference}, in nats, least first: {listed}; two halves of "
            f"{reference} are {result['kl_floor']:.3f} apart."
        )
    return sentences


def coverage_table(result: Result) -> list[list[str]]:
    """KL divergence between all sets, the row against the column, in nats; a header first."""
    names = list(result["kl"])
    return [["KL(row ‖ column), nats", *names], *([a, *(f"{result['kl'][a][b]:.3f}" for b in names)] for a in names)]


def patches(result: Result, about: Result) -> list[str]:
    """Whether foreground and background are as unlike in made images as in real ones."""
    means = {
        name: {kind: _mean([layer[kind]["variance"] for layer in s["layers"].values()]) for kind in KINDS}
        for name, s in result.items()
    }
    listed = "; ".join(
        f"{name}: {m['foreground']:.4f} within the foreground, {m['background']:.4f} within the background, "
        f"{m['across']:.4f} across"
        for name, m in means.items()
    )
    sentences = [f"Variance of patch similarity, mean over layers and images. {listed}."]
    reference = about["reference"]
    if reference is not None and len(means) > 1:
        ratios = {n: m["across"] / means[reference]["across"] for n, m in means.items() if n != reference}
        nearest = min(ratios, key=lambda name: abs(ratios[name] - 1))
        sentences.append(
            f"Across foreground and background, {', '.join(f'{n} has {r:.2f}' for n, r in ratios.items())} of the "
            f"variance of {reference}; nearest to it is {nearest}."
        )
    return sentences


def feature_map(result: Result, about: Result) -> list[str]:
    """How far the sets lie from real images."""
    distances = result["distances"]
    if distances is None:
        return ["No set was named as the reference, so only the pictures can be compared."]
    reference, floor = about["reference"], distances["floor"]
    listed = "; ".join(
        f"{name}: MMD² {d['mmd_squared']:.3f}, its images lie {d['nearest_reference']:.3f} from their nearest "
        f"{reference} image, {reference} images {d['reference_nearest']:.3f} from their nearest of the set"
        for name, d in sorted(distances["sets"].items(), key=lambda item: item[1]["mmd_squared"])
    )
    return [
        f"Distances of unit features, nearest set first. {listed}. Two halves of {reference}: MMD² "
        f"{floor['mmd_squared']:.3f}, nearest images {floor['nearest_reference']:.3f} apart."
    ]


def sensitivity(result: Result, about: Result) -> list[str]:
    """Where the error comes from."""
    summary, sentences = result["summary"], []
    for tower in ("image", "text"):
        everything = result["all"].get(tower)
        ranked = summary["bottlenecks"][tower]
        listed = ", ".join(f"{e['layer']} ({e['bits']} bits) {e['returned']:.0%}" for e in ranked[:5])
        by_kind = {k: v for k, v in summary["kinds_without"].items() if k.startswith(f"{tower} ")}
        best = sorted(by_kind, key=lambda kind: -by_kind[kind])[:3]
        sentences.append(
            f"The {tower} tower at {about['recipe']} by round-to-nearest has a centred error of "
            f"{everything['error']:.3f}. One weight back in float takes away of its square: {listed}. A whole kind: "
            f"{', '.join(f'{kind} {by_kind[kind]:.0%}' for kind in best)}."
        )
    fewest = min(summary["kinds"]["weight"], key=int)
    for tower in ("image", "text"):
        shares = {k: v["share"] for k, v in summary["kinds"]["weight"][fewest].items() if k.startswith(f"{tower} ")}
        best = sorted(shares, key=lambda kind: -shares[kind])[:3]
        sentences.append(
            f"With every weight of the {tower} tower tried alone at {fewest} bits, the summed squared error divides "
            f"into {', '.join(f'{kind} {shares[kind]:.0%}' for kind in best)} and the rest."
        )
    if summary["rank_agreement"] is not None:
        by_bits = summary["rank_agreement"]["weight"]
        listed = ", ".join(f"{value:.2f} at {b} bits" for b, value in by_bits.items())
        sentences.append(
            f"Rank correlation of the image tower's layers, error on images without data against error on "
            f"{about['reference']}: {listed} (weights alone)."
        )
    return sentences


def text_mlp(result: Result, _: Result) -> list[str]:
    """Whether the text MLP needs 8 bits."""
    sentences = []
    for method, words in (("nearest", "Round-to-nearest"), ("learned", "Learned rounding")):
        listed = ", ".join(
            f"{'float' if b == '32' else b + ' bits'} {cell['centred_error']:.3f}" for b, cell in result[method].items()
        )
        sentences.append(f"{words}: centred error of the text tower with the MLP's weights at {listed}.")
    some = next(iter(result["nearest"].values()))
    if "acc1" in some:
        for method, words in (("nearest", "Round-to-nearest"), ("learned", "Learned rounding")):
            listed = ", ".join(
                f"{'float' if b == '32' else b} {_points(cell['acc1_difference'])} ± {_error(cell)}"
                for b, cell in result[method].items()
            )
            sentences.append(
                f"{words}: zero-shot top-1 against float ({some['acc1_float']:.2%}), image tower in float, in points "
                f"with paired standard error: {listed}."
            )
        sentences += [_verdict(result["learned"], "learned rounding"), _verdict(result["nearest"], "round-to-nearest")]
    return sentences


def _verdict(by_bits: Result, words: str) -> str:
    if "8" not in by_bits:
        return ""
    best = by_bits["8"]["acc1_difference"]
    low = [b for b in sorted(by_bits, key=int) if int(b) <= 8]
    told = [b for b in low if by_bits[b]["acc1_standard_error"] <= ENOUGH_LOSS]
    enough = [b for b in told if by_bits[b]["acc1_difference"] >= best - ENOUGH_LOSS]
    sentence = f"With {words}, one seed, on this set: "
    if enough:
        sentence += f"{enough[0]} bits are the fewest that cost at most half a point against 8 bits. "
    blind = [b for b in low if b not in told]
    if blind:
        sentence += (
            f"At {', '.join(blind)} bits the standard error is above half a point, so the set is too small to tell."
        )
    return sentence


def transfer(result: Result, about: Result) -> list[str]:
    """Whether it matters what the images show, and how far made images are from real ones."""
    sentences, reference = [], about["reference"]
    for recipe, rows in result.items():
        errors = {row: cell["errors"] for row, cell in rows.items()}
        relative = relative_to_own(errors)
        worst = max(((r, row, col) for row, by in relative.items() for col, r in by.items()), key=lambda x: x[0])
        sentences.append(
            f"{recipe}, image tower rounded to nearest: the worst transfer is {worst[1]} judged on {worst[2]}, "
            f"{worst[0]:.2f} times the error of ranges from {worst[2]} itself."
        )
        if reference is not None:
            listed = ", ".join(f"{row} {errors[row][reference]:.3f}" for row in errors)
            sentences.append(f"{recipe}, judged on {reference}, error by what the ranges came from: {listed}.")
        if "acc1" in next(iter(rows.values())):
            listed = ", ".join(
                f"{row} {_points(cell['acc1_difference'])} ± {_error(cell)}" for row, cell in rows.items()
            )
            first = next(iter(rows.values()))["acc1_float"]
            sentences.append(
                f"{recipe}, zero-shot top-1 against float ({first:.2%}), in points with paired standard error: "
                f"{listed}."
            )
    return sentences


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"


def _error(cell: Result) -> str:
    return f"{100 * cell['acc1_standard_error']:.2f}"


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else float("nan")

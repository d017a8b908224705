"""Prompt coverage: how near the images of a set come to the prompts of a bank, and to how many of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

NUM_BINS = 60
PSEUDO_COUNT = 0.5


def histogram_edges(cosines: Mapping[str, Array], num_bins: int = NUM_BINS) -> Array:
    """Equal bins from the least to the greatest cosine of all sets together, [num_bins + 1]."""
    low = min(float(c.min()) for c in cosines.values())
    high = max(float(c.max()) for c in cosines.values())
    return np.linspace(low, high if high > low else low + 1e-6, num_bins + 1)


def smoothed(counts: Array) -> Array:
    """Counts as probabilities without zeros, p_b = (n_b + a) / (N + a B) with a = 1/2 (Jeffreys' prior).

    Args:
        counts: n_b, [bin].
    """
    return (counts + PSEUDO_COUNT) / (counts.sum() + PSEUDO_COUNT * len(counts))


def kl_divergence(p: Array, q: Array) -> float:
    """KL(p || q) = sum_b p_b ln(p_b / q_b), in nats; both without zeros, [bin]."""
    return float((p * np.log(p / q)).sum())


def best_prompt_share(cosines: Array) -> Array:
    """For each prompt the share of the images whose best prompt it is, [prompt].

    Args:
        cosines: [image, prompt].
    """
    return np.bincount(cosines.argmax(axis=1), minlength=cosines.shape[1]) / len(cosines)


def entropy(shares: Array) -> float:
    """-sum_k f_k ln f_k in nats, 0 ln 0 = 0; exp of it is the number of prompts that are used, evenly weighted."""
    used = shares[shares > 0]
    return float(-(used * np.log(used)).sum())


def prompt_coverage(cosines: Mapping[str, Array], reference: str | None) -> dict[str, Any]:
    """Compare sets by the cosines of their images to all prompts of a bank.

    Args:
        cosines: by set, [image, prompt].
        reference: the set that the others are compared with, or None.

    Returns:
        as JSON, `edges`; `sets`: by set the histogram's `counts`, the mean cosine to all prompts and to each image's
        best, `covered` (share of the prompts that are some image's best) with its `coverable` limit, entropy and
        effective number of best prompts, `kl_to_reference`; `kl`: KL(row || column) between all sets; `kl_floor`:
        KL between the reference's even and odd images, what sampling alone makes.
    """
    edges = histogram_edges(cosines)
    counts = {name: np.histogram(c, edges)[0].astype(np.float64) for name, c in cosines.items()}
    density = {name: smoothed(n) for name, n in counts.items()}
    sets = {}
    for name, c in cosines.items():
        shares = best_prompt_share(c)
        sets[name] = {
            "counts": counts[name].astype(int).tolist(),
            "mean_cosine": float(c.mean()),
            "mean_best_cosine": float(c.max(axis=1).mean()),
            "covered": float((shares > 0).mean()),
            "coverable": min(1.0, len(c) / c.shape[1]),
            "entropy": entropy(shares),
            "effective_prompts": float(np.exp(entropy(shares))),
            "kl_to_reference": None if reference is None else kl_divergence(density[name], density[reference]),
        }
    return {
        "images": len(next(iter(cosines.values()))),
        "prompts": next(iter(cosines.values())).shape[1],
        "edges": edges.tolist(),
        "sets": sets,
        "kl": {a: {b: kl_divergence(density[a], density[b]) for b in density} for a in density},
        "kl_floor": None if reference is None else _floor(cosines[reference], edges),
    }


def _floor(cosines: Array, edges: Array) -> float:
    even, odd = (smoothed(np.histogram(half, edges)[0].astype(np.float64)) for half in (cosines[::2], cosines[1::2]))
    return kl_divergence(even, odd)

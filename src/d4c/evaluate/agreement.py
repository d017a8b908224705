"""What quantization lost, without data: float embeddings against quantized ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.inputs import Encoder

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TowerError:
    """How far embeddings moved.

    Args:
        centred_error: ||ẑ - z|| / ||z - z̄||, Frobenius, z̄ the mean of the set's float embeddings.
        cosine_mean, cosine_p01: of each embedding with its own, mean and first percentile.
    """

    centred_error: float
    cosine_mean: float
    cosine_p01: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often the best candidate of a query stays the same, as a share of the queries.

    Args:
        all: over every query; low_margin, high_margin: the half whose float margin between best and second best is
            the smaller, the larger.
    """

    all: float
    low_margin: float
    high_margin: float


def tower_error(z: Array, quantized: Array) -> TowerError:
    """Compare embeddings [row, embedding], not normalised."""
    cosine = (unit(z.astype(np.float64)) * unit(quantized.astype(np.float64))).sum(axis=1)  # [row]
    return TowerError(centred_error(z, quantized), float(cosine.mean()), float(np.quantile(cosine, 0.01)))


def centred_error(x: Array, changed: Array) -> float:
    """||x̂ - x|| / ||x - x̄||, Frobenius, of rows [row, value]; x̄ is the mean row."""
    x64 = x.astype(np.float64)
    spread = np.linalg.norm(x64 - x64.mean(axis=0))
    return float(np.linalg.norm(changed.astype(np.float64) - x64) / max(spread, np.finfo(np.float64).tiny))


def agreement(reference: NDArray[np.floating[Any]], changed: NDArray[np.floating[Any]]) -> Agreement:
    """Compare the best candidate of each query under two score matrices [query, candidate]."""
    same = reference.argmax(axis=1) == changed.argmax(axis=1)  # [query]
    if reference.shape[1] < 2:
        return Agreement(1.0, 1.0, 1.0)
    best = np.partition(reference, -2, axis=1)[:, -2:]  # [query, 2]
    margin = best[:, 1] - best[:, 0]
    order = margin.argsort(kind="stable")
    half = (len(order) + 1) // 2
    high = order[half:] if len(order) > 1 else order
    return Agreement(float(same.mean()), float(same[order[:half]].mean()), float(same[high].mean()))


def evaluate_without_data(
    reference: Encoder,
    quantized: Encoder,
    image_sets: Mapping[str, Array],
    bank_ids: NDArray[np.int64],
    held_ids: NDArray[np.int64],
) -> dict[str, Any]:
    """Compare two encoders on several sets of images, a bank of prompts, and texts that nothing was calibrated on.

    Args:
        image_sets: by name, pixels [image, 3, size, size] in normalised space.
        bank_ids: what images choose from, [prompt, token]; held_ids: what the text tower is judged on, [text, token].

    Returns:
        as JSON, `text`: its `TowerError`; `sets`: by set, `image`: its `TowerError`, and the `Agreement`s
        `image_top1` (each image's best prompt when only images are quantized), `text_top1` (when only prompts are),
        `top1` (when both are) and `mixed_index` (quantized prompts looking for their best image in a float gallery);
        `worst`: the largest error and the smallest agreement over the sets.
    """
    text = asdict(tower_error(reference.encode_text(held_ids), quantized.encode_text(held_ids)))
    bank, quantized_bank = unit(reference.encode_text(bank_ids)), unit(quantized.encode_text(bank_ids))
    sets = {}
    for name, pixels in image_sets.items():
        z, changed = reference.encode_image(pixels), quantized.encode_image(pixels)
        image, quantized_image = unit(z), unit(changed)
        cosines = image @ bank.T  # [image, prompt]
        sets[name] = {
            "image": asdict(tower_error(z, changed)),
            "image_top1": asdict(agreement(cosines, quantized_image @ bank.T)),
            "text_top1": asdict(agreement(cosines, image @ quantized_bank.T)),
            "top1": asdict(agreement(cosines, quantized_image @ quantized_bank.T)),
            "mixed_index": asdict(agreement(cosines.T, quantized_bank @ image.T)),
        }
    worst = {
        "image_centred_error": float(np.max([s["image"]["centred_error"] for s in sets.values()])),  # NaN wins
        "text_centred_error": text["centred_error"],
        **{k: min(s[k]["all"] for s in sets.values()) for k in ("image_top1", "text_top1", "top1", "mixed_index")},
    }
    return {"text": text, "sets": sets, "worst": worst}


def unit(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Rows divided by their length."""
    length: NDArray[np.floating[Any]] = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(length, np.finfo(x.dtype).tiny)

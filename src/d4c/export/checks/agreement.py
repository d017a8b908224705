"""Embeddings of a running graph against those of the simulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.export.checks.row import Row

# Simulation and runtime add float32 in another order. Where the difference carries a value over the edge between two
# codes, every later quantizer sees it, so that embeddings of a deep tower never agree to the last digit. How far that
# goes, two simulations of the same integers tell, one in whole numbers and one in float32 sums: where they differ by
# more than the bound, as they do in models whose embeddings are all alike, a runtime may differ by twice as much.
MAX_CENTRED_ERROR = {"onnxruntime": 0.02, "openvino": 0.1}
MAX_TIMES_SIMULATIONS = 2.0
MAX_COMPANY = 1e-5

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Embeddings:
    """One encoder's view of a set: images [image, embedding] and texts [text, embedding], not normalised."""

    images: Array
    texts: Array

    def logits(self, scale: float) -> NDArray[np.float64]:
        """Cosines times the scale, [image, text]."""
        return scale * unit(self.images) @ unit(self.texts).T


def unit(rows: Array) -> NDArray[np.float64]:
    """Rows of length 1."""
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def centred_error(found: Array, reference: Array) -> float:
    """‖ẑ − z‖ / ‖z − z̄‖ of rows of length 1: what differs, in units of what tells one row from another."""
    z, found = unit(reference), unit(found)
    return float(np.linalg.norm(found - z) / max(float(np.linalg.norm(z - z.mean(axis=0))), 1e-30))


def embedding_row(name: str, found: Array, reference: Array, second: Array, runtime: str) -> Row:
    """The centred error of one set, and whether it is small enough.

    Args:
        reference, second: of two simulations.
    """
    error, between = centred_error(found, reference), centred_error(second, reference)
    bound = max(MAX_CENTRED_ERROR[runtime], MAX_TIMES_SIMULATIONS * between)
    return Row(name, f"centred error {error:.1e} (two simulations {between:.1e})", error <= bound)


def best_text_row(name: str, found: Embeddings, reference: Embeddings, scale: float) -> Row:
    """Whether the best text of each image is the same, wherever the simulation is surer than its logits are exact."""
    logits, found_logits = reference.logits(scale), found.logits(scale)
    error = float(np.abs(logits - found_logits).max())
    best = np.sort(logits, axis=1)
    sure = best[:, -1] - best[:, -2] > error  # [image]
    same = logits.argmax(axis=1) == found_logits.argmax(axis=1)
    said = f"{same[sure].mean():.1%} equal, {1 - sure.mean():.1%} too close to tell" if sure.any() else "too close"
    return Row(name, f"{said} (logit error {error:.3f}); of all {same.mean():.1%}", bool(same[sure].all()))


def company_row(name: str, alone: Array, together: Array) -> Row:
    """Whether an embedding depends on what else is in the batch."""
    difference = float(np.abs(unit(alone) - unit(together)).max())
    return Row(name, f"largest difference {difference:.1e}", difference < MAX_COMPANY)

"""What a changed model gets right that the reference does not, and the other way round, on the same queries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def paired_difference(
    before: NDArray[np.bool_], after: NDArray[np.bool_], group: NDArray[np.integer[Any]] | None = None
) -> tuple[float, float]:
    """The mean difference of paired answers and its standard error.

        d_i = after_i - before_i,   error² = G / (G - 1) · sum_g (sum_{i in g} (d_i - d̄))² / N²

    With one query a group this is the standard deviation of d (N - 1) over sqrt(N); queries that stand together, as
    the captions of one image do, are no independent draws, and the sum over groups allows for that (the cluster-robust
    variance of a mean, e.g. Cameron and Miller, A Practitioner's Guide to Cluster-Robust Inference, 2015, section II).

    Args:
        before, after: right or wrong, [query].
        group: number of the group that each query stands in, [query]; by default each stands alone.

    Returns:
        both as fractions; the error of fewer than two groups is NaN.
    """
    difference = after.astype(np.float64) - before  # [query]
    group = np.arange(len(difference)) if group is None else group
    _, index = np.unique(group, return_inverse=True)
    sums = np.bincount(index, difference - difference.mean())  # [group]
    if len(sums) < 2:
        return float(difference.mean()), float("nan")
    variance = len(sums) / (len(sums) - 1) * (sums**2).sum() / len(difference) ** 2
    return float(difference.mean()), float(np.sqrt(variance))

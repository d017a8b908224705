"""Image features of several sets on one plane, and how far the sets lie from each other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.errors import MissingExtraError

Array = NDArray[np.float64]

PERPLEXITY = 30


def principal_plane(x: Array) -> tuple[Array, Array]:
    """Project rows on their two principal directions.

    Args:
        x: [row, channel].

    Returns:
        coordinates [row, 2], each axis with its largest value positive, and the share of variance of each axis [2].
    """
    centred = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    plane = u[:, :2] * s[:2]
    sign = np.sign(plane[np.abs(plane).argmax(axis=0), np.arange(plane.shape[1])])
    return plane * np.where(sign == 0, 1, sign), s[:2] ** 2 / max(float((s**2).sum()), np.finfo(np.float64).tiny)


def tsne_plane(x: Array, seed: int) -> Array:
    """t-SNE (van der Maaten and Hinton, 2008) from a PCA start, [row, 2]; perplexity 30, less for few rows.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError("plots", "a map of image features") from error
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    plane = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(x)
    return np.asarray(plane, np.float64)


def umap_plane(x: Array, seed: int) -> Array | None:
    """UMAP (arXiv:1802.03426), [row, 2]; None where umap-learn is not installed."""
    try:
        from umap import UMAP
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that a seed makes it slower
        plane = UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed).fit_transform(x)
    return np.asarray(plane, np.float64)


def squared_distances(x: Array, y: Array) -> Array:
    """||x_i - y_j||^2, [row of x, row of y]."""
    square = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * x @ y.T
    return np.maximum(square, 0)


def mmd_squared(x: Array, y: Array, bandwidth: float) -> float:
    """Squared maximum mean discrepancy, unbiased (Gretton et al., JMLR 13, 2012).

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j),
    k(a, b) = exp(-||a - b||^2 / (2 bandwidth^2)).

    Args:
        x, y: [row, channel], at least two rows each.
    """

    def kernel(a: Array, b: Array) -> Array:
        return np.exp(-squared_distances(a, b) / (2 * bandwidth**2))

    def off_diagonal(k: Array) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    return off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * float(kernel(x, y).mean())


def median_distance(x: Array) -> float:
    """The median distance of two different rows; the usual bandwidth."""
    distances = squared_distances(x, x)[np.triu_indices(len(x), 1)]
    return max(float(np.sqrt(np.median(distances))), 1e-12)


def nearest_distances(x: Array, y: Array) -> Array:
    """The distance of each row of x to its nearest row of y, [row of x]."""
    return np.sqrt(squared_distances(x, y).min(axis=1))


def distances_to_reference(features: Mapping[str, Array], reference: str) -> dict[str, Any]:
    """How far each set lies from the reference, by unit features [image, channel].

    Returns:
        by set `mmd_squared` with the bandwidth of the reference, `nearest_reference` (mean over the set's images of
        the distance to the nearest reference image) and `reference_nearest` (the other way round: large where the set
        misses a region); `floor`: the same between the reference's even and odd images.
    """
    y = features[reference]
    bandwidth = median_distance(y)

    def between(a: Array, b: Array) -> dict[str, float]:
        return {
            "mmd_squared": mmd_squared(a, b, bandwidth),
            "nearest_reference": float(nearest_distances(a, b).mean()),
            "reference_nearest": float(nearest_distances(b, a).mean()),
        }

    return {
        "bandwidth": bandwidth,
        "sets": {name: between(x, y) for name, x in features.items() if name != reference},
        "floor": between(y[::2], y[1::2]),
    }


def feature_map(features: Mapping[str, Array], reference: str | None, seed: int) -> dict[str, Any]:
    """Planes and distances of several sets' unit features, as JSON.

    Args:
        features: by set, [image, channel], rows of length 1.

    Returns:
        `planes`: by method and set the coordinates [image, 2]; `pca_variance`: shares of the two axes; `distances`.
    """
    x = np.concatenate(list(features.values())).astype(np.float64)
    pca, variance = principal_plane(x)
    planes = {"PCA": pca, "t-SNE": tsne_plane(x, seed)}
    umap = umap_plane(x, seed)
    if umap is not None:
        planes["UMAP"] = umap
    stops = np.cumsum([len(f) for f in features.values()])[:-1]
    return {
        "planes": {
            method: {name: part.round(4).tolist() for name, part in zip(features, np.split(plane, stops), strict=True)}
            for method, plane in planes.items()
        },
        "pca_variance": variance.tolist(),
        "distances": None if reference is None else distances_to_reference(features, reference),
    }

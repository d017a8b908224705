import math
import sys
import types

import numpy as np
import pytest

from d4c.experiments.analyze.feature_map import (
    distances_to_reference,
    feature_map,
    median_distance,
    mmd_squared,
    nearest_distances,
    principal_plane,
    squared_distances,
)


def test_squared_distances_by_hand() -> None:
    x, y = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 1.0]])
    np.testing.assert_allclose(squared_distances(x, y), [[1.0], [18.0]])


def test_principal_plane_of_points_on_a_cross() -> None:
    x = np.array([[3.0, 0.0, 1.0], [-3.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, -1.0, 1.0]])
    plane, share = principal_plane(x)
    np.testing.assert_allclose(np.abs(plane), [[3, 0], [3, 0], [0, 1], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(share, [18 / 20, 2 / 20])


def test_mmd_by_hand() -> None:
    # Kernel of distance 0 is 1, of distance 1 with bandwidth 1 it is k = exp(-1/2).
    x, y = np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]])
    assert mmd_squared(x, y, 1.0) == pytest.approx(2 - 2 * math.exp(-0.5))
    # x = {0, 1} twice: off the diagonal k, across (1 + k) / 2
    z = np.array([[0.0], [1.0]])
    k = math.exp(-0.5)
    assert mmd_squared(z, z, 1.0) == pytest.approx(2 * k - (1 + k))


def test_mmd_is_about_zero_for_draws_of_one_distribution() -> None:
    draws = np.random.default_rng(0).normal(size=(2, 400, 3))
    assert abs(mmd_squared(draws[0], draws[1], median_distance(draws[0]))) < 0.01
    assert mmd_squared(draws[0], draws[1] + 1, median_distance(draws[0])) > 0.05


def test_nearest_distances_by_hand() -> None:
    x, y = np.array([[0.0], [1.0], [5.0]]), np.array([[4.0], [0.5]])
    np.testing.assert_allclose(nearest_distances(x, y), [0.5, 0.5, 1])
    np.testing.assert_allclose(nearest_distances(y, x), [1, 0.5])


def test_median_distance_of_three_points() -> None:
    assert median_distance(np.array([[0.0], [1.0], [5.0]])) == 4  # 1, 4, 5


def test_a_set_that_misses_a_region_lies_far_from_the_reference_one_way() -> None:
    real = np.array([[0.0], [0.0], [0.0], [0.0], [9.0], [9.0], [9.0], [9.0]])
    narrow = np.zeros((8, 1))
    found = distances_to_reference({"real": real, "narrow": narrow}, "real")
    assert found["sets"]["narrow"]["nearest_reference"] == 0
    assert found["sets"]["narrow"]["reference_nearest"] == 4.5
    assert found["floor"]["nearest_reference"] == 0


def test_umap_is_drawn_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class FirstTwo:
        def __init__(self, n_neighbors: int, random_state: int) -> None:
            assert (n_neighbors, random_state) == (11, 0)

        def fit_transform(self, x: np.ndarray) -> np.ndarray:
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=FirstTwo))
    features = {"a": np.eye(6, 5), "b": -np.eye(6, 5)}
    assert feature_map(features, None, 0)["planes"]["UMAP"]["b"][1] == [0, -1]


def test_every_image_has_a_place_on_every_plane_and_the_seed_decides_it() -> None:
    generator = np.random.default_rng(0)
    features = {"a": generator.normal(size=(6, 5)), "b": generator.normal(size=(6, 5)) + 3}
    first, again = feature_map(features, None, 0), feature_map(features, None, 0)
    assert {"PCA", "t-SNE"} <= first["planes"].keys()
    assert all(len(points) == 6 for plane in first["planes"].values() for points in plane.values())
    assert first["planes"] == again["planes"]
    assert first["distances"] is None

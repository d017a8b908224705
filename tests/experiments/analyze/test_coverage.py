import math

import numpy as np
import pytest

from d4c.experiments.analyze.coverage import (
    best_prompt_share,
    entropy,
    histogram_edges,
    kl_divergence,
    prompt_coverage,
    smoothed,
)


def test_bins_span_all_sets() -> None:
    edges = histogram_edges({"a": np.array([[0.0, 0.5]]), "b": np.array([[-1.0, 0.25]])}, num_bins=3)
    np.testing.assert_allclose(edges, [-1.0, -0.5, 0.0, 0.5])


def test_constant_cosines_still_have_bins() -> None:
    assert (np.diff(histogram_edges({"a": np.full((2, 2), 0.3)}, num_bins=4)) > 0).all()


def test_smoothing_adds_half_a_count_to_every_bin() -> None:
    # (3 + 0.5) / (4 + 2), (1 + 0.5) / 6, (0 + 0.5) / 6, (0 + 0.5) / 6
    np.testing.assert_allclose(smoothed(np.array([3.0, 1.0, 0.0, 0.0])), [3.5 / 6, 1.5 / 6, 0.5 / 6, 0.5 / 6])


def test_kl_by_hand() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    # 0.5 ln 2 + 0.5 ln(2/3) = 0.5 ln(4/3)
    assert kl_divergence(p, q) == pytest.approx(0.5 * math.log(4 / 3))
    assert kl_divergence(q, p) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert kl_divergence(p, p) == 0


def test_best_prompts_are_counted_as_shares() -> None:
    cosines = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.1, 0.2], [0.3, 0.1, 0.2]])
    np.testing.assert_allclose(best_prompt_share(cosines), [0.75, 0.0, 0.25])


def test_entropy_of_even_shares_counts_them() -> None:
    assert math.exp(entropy(np.array([0.25, 0.25, 0.25, 0.25, 0.0]))) == pytest.approx(4)
    assert entropy(np.array([1.0, 0.0])) == 0
    # -(3/4 ln 3/4 + 1/4 ln 1/4)
    assert entropy(np.array([0.75, 0.25])) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


def test_coverage_of_two_sets_by_hand() -> None:
    real = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    noise = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    result = prompt_coverage({"real": real, "noise": noise}, "real")
    assert result["sets"]["real"]["covered"] == 1.0
    assert result["sets"]["noise"]["covered"] == 0.5
    assert result["sets"]["real"]["effective_prompts"] == pytest.approx(2)
    assert result["sets"]["real"]["mean_best_cosine"] == 1.0
    assert result["sets"]["noise"]["kl_to_reference"] == pytest.approx(0)  # the same cosines, only placed otherwise
    assert sum(result["sets"]["real"]["counts"]) == 8
    assert result["kl"]["real"]["real"] == 0
    assert (result["images"], result["prompts"]) == (4, 2)


def test_few_images_cannot_cover_a_large_bank() -> None:
    cosines = np.random.default_rng(0).normal(size=(3, 12))
    about = prompt_coverage({"a": cosines}, None)["sets"]["a"]
    assert about["coverable"] == 0.25
    assert about["covered"] <= 0.25
    assert about["kl_to_reference"] is None

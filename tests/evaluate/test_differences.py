import numpy as np
import pytest

from d4c.evaluate.differences import paired_difference


def test_a_mean_and_its_error_by_hand() -> None:
    # Differences 0 -1 -1 1 0, mean -1/5; squared deviations (1 + 16 + 16 + 36 + 1) / 25 = 14/5; 5/4 · 14/5 / 25 = 0.14.
    before, after = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
    assert paired_difference(before, after) == pytest.approx((-0.2, np.sqrt(0.14)))


def test_queries_of_one_group_count_as_one_draw() -> None:
    # The same differences in groups (0, -1), (-1, 1), (0): sums of deviations -0.6, 0.4, 0.2; 3/2 · 0.56 / 25.
    before, after = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
    found = paired_difference(before, after, np.array([7, 7, 3, 3, 9]))
    assert found == pytest.approx((-0.2, np.sqrt(1.5 * 0.56 / 25)))


def test_copies_of_a_query_do_not_make_the_error_smaller() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 50)) < 0.5
    _, once = paired_difference(before, after)
    five = [np.repeat(x, 5) for x in (before, after, np.arange(50))]
    assert paired_difference(*five)[1] == pytest.approx(once)
    assert paired_difference(five[0], five[1])[1] < 0.5 * once


def test_one_draw_has_no_error() -> None:
    assert np.isnan(paired_difference(np.array([True]), np.array([False]))[1])
    assert np.isnan(paired_difference(np.ones(3, bool), np.zeros(3, bool), np.zeros(3, int))[1])

import pytest
import torch

from d4c.experiments.analyze.sets import errors_by_set, stacked


def test_errors_of_each_set_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    x, places = stacked({"a": z[:2], "b": z[2:]})
    changed = x + torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    # a: ||change|| = sqrt 2, spread about the mean (0, 0) = sqrt 2; b: 1, spread about (0, 2) = sqrt 2
    assert errors_by_set(x, changed, places) == {"a": pytest.approx(1.0), "b": pytest.approx(0.5**0.5)}

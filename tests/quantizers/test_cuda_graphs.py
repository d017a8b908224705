"""What a processor does itself, and, where there is a GPU, that a replay does the same."""

import pytest
import torch
from torch import Tensor

from d4c.quantizers.cuda_graphs import launch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def cumulate(total: Tensor, step: Tensor) -> None:
    for i in range(1, len(total)):
        total[i].add_(total[i - 1]).mul_(step[i])


@pytest.mark.parametrize("device", DEVICES)
def test_only_what_changed_comes_back_and_each_call_has_its_own_values(device: str) -> None:
    for start in (1.0, 3.0):
        total = torch.full((4, 2), start, device=device)
        launch(cumulate, [total[1:]], [torch.tensor([9.0, 2.0, 1.0], device=device)])
        # The first row is not given; of those given, the second becomes (1 + 1) 2 times the start, the third (4 + 1) 1.
        assert total[:, 0].tolist() == [start, start, 4 * start, 5 * start]

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d4c.reconstruct.rows import rows_read

CONVOLUTIONS = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.Conv2d(3, 4, 3, stride=2, padding=1),
    nn.Conv2d(3, 4, 1),
    nn.Conv2d(3, 4, (2, 5), stride=(2, 1), padding=(0, 2)),
    nn.Conv2d(3, 4, 4, stride=4),
]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_patches_times_the_weight_are_the_convolution(conv: nn.Conv2d) -> None:
    x = torch.randn(2, 3, 9, 8)
    rows, other, weight = rows_read(conv, x, 2 * x, None, 10**6, generator())
    assert weight is None
    y = conv(x)
    expected = y.movedim(1, -1).flatten(0, 2)  # [sample x place, out]
    assert conv.bias is not None
    torch.testing.assert_close(F.linear(rows, conv.weight.flatten(1), conv.bias), expected)
    torch.testing.assert_close(other, 2 * rows)


@pytest.mark.parametrize("conv", CONVOLUTIONS[:2], ids=str)
def test_a_part_of_the_patches_is_drawn_from_each_image_alike(conv: nn.Conv2d) -> None:
    x = torch.arange(1.0, 4)[:, None, None, None] * torch.ones(3, 3, 9, 8)  # each image its own number
    rows, other, _ = rows_read(conv, x, -x, None, 5, generator())
    assert torch.equal(other, -rows)
    assert rows.amax(dim=1).reshape(3, 5).tolist() == [[1.0] * 5, [2.0] * 5, [3.0] * 5]
    again, _, _ = rows_read(conv, x, -x, None, 5, generator())
    assert torch.equal(again, rows)
    whole = {tuple(row) for row in rows_read(conv, x, x, None, 10**6, generator())[0].tolist()}
    assert {tuple(row) for row in rows.tolist()} <= whole


def test_tokens_are_drawn_from_each_sample_alike_and_from_both_streams_the_same() -> None:
    linear = nn.Linear(4, 2)
    x = torch.randn(3, 7, 4)
    rows, other, weight = rows_read(linear, x, x + 1, None, 100, generator())
    assert weight is None
    assert torch.equal(rows, x.flatten(0, 1))
    rows, other, _ = rows_read(linear, x, x + 1, None, 2, generator())
    torch.testing.assert_close(other, rows + 1)
    sample = (rows[:, None] == x.flatten(0, 1)).all(dim=-1).nonzero()[:, 1] // 7
    assert sample.tolist() == [0, 0, 1, 1, 2, 2]


def test_tokens_of_no_weight_are_left_out_and_the_others_all_taken() -> None:
    linear = nn.Linear(4, 2)
    x, weight = torch.randn(2, 3, 4), torch.tensor([[1.0, 0.5, 0.0], [0.25, 0.0, 0.0]])
    rows, other, given = rows_read(linear, x, -x, weight, 1, generator())
    assert torch.equal(rows, torch.stack([x[0, 0], x[0, 1], x[1, 0]]))
    assert torch.equal(other, -rows)
    assert given is not None
    assert given.tolist() == [1.0, 0.5, 0.25]


def test_one_vector_a_sample_is_taken_as_it_is() -> None:
    x = torch.randn(5, 4)
    rows, other, weight = rows_read(nn.Linear(4, 2), x, -x, None, 1, generator())
    assert rows is x
    assert torch.equal(other, -x)
    assert weight is None

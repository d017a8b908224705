import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d4c.quantizers.functional import fake_quantize
from d4c.quantizers.grids import AffineGrid, IntegerGrid, PerChannel, TensorFormat, place_grid

FINITE = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize(
    ("num_bits", "symmetric", "qmin", "qmax"),
    [(2, True, -2, 1), (2, False, 0, 3), (4, True, -8, 7), (6, False, 0, 63), (8, True, -128, 127), (8, False, 0, 255)],
)
def test_codes_are_those_of_twos_complement_or_unsigned(num_bits: int, symmetric: bool, qmin: int, qmax: int) -> None:
    grid = IntegerGrid(num_bits, symmetric)
    assert (grid.qmin, grid.qmax) == (qmin, qmax)


@pytest.mark.parametrize("num_bits", [1, 17])
def test_bits_out_of_reach_are_refused(num_bits: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_bits}"):
        IntegerGrid(num_bits, symmetric=True)


@pytest.mark.parametrize(
    ("num_bits", "symmetric", "low", "high", "scale", "zero_point"),
    [
        (2, False, -1.0, 2.0, 1.0, 1),  # 3 / 3; 1 / 1
        (2, False, 0.5, 3.0, 1.0, 0),  # widened to 0 .. 3
        (2, False, -3.0, -1.0, 1.0, 3),  # widened to -3 .. 0
        (2, False, -1.5, 1.5, 1.0, 2),  # 1.5 goes to the even neighbour, up
        (3, False, -2.5, 4.5, 1.0, 2),  # 2.5 goes to the even neighbour, down
        (8, False, -25.0, 38.75, 0.25, 100),  # 63.75 / 255; 25 / 0.25
        (2, True, -2.0, 1.0, 2.0, 0),  # 2 / 1
        (4, True, -3.5, 7.0, 1.0, 0),  # 7 / 7
        (8, True, -63.5, 1.0, 0.5, 0),  # 63.5 / 127
        (8, False, 0.0, 0.0, 1.0, 0),
        (8, True, 0.0, 0.0, 1.0, 0),
        (8, False, 0.0, 1e-42, 1.0, 0),  # no normal float32 is a small enough step
    ],
)
def test_grid_is_placed_as_by_hand(
    num_bits: int, symmetric: bool, low: float, high: float, scale: float, zero_point: int
) -> None:
    affine = place_grid(torch.tensor(low), torch.tensor(high), IntegerGrid(num_bits, symmetric))
    assert (affine.scale.item(), affine.zero_point.item()) == (scale, zero_point)


def test_an_all_zero_channel_gets_scale_one_and_leaves_the_others_alone() -> None:
    high = torch.tensor([[15.0], [0.0], [30.0]])
    affine = place_grid(torch.zeros_like(high), high, IntegerGrid(4, symmetric=False))
    assert affine.scale.tolist() == [[1.0], [1.0], [2.0]]


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@settings(deadline=None, max_examples=40)
@given(ends=st.tuples(FINITE, FINITE), within=st.floats(0, 1))
def test_zero_is_exact_and_the_range_within_half_a_step(
    num_bits: int, symmetric: bool, ends: tuple[float, float], within: float
) -> None:
    low, high = torch.tensor(sorted(ends))
    affine = place_grid(low, high, IntegerGrid(num_bits, symmetric))
    x = torch.stack([torch.tensor(0.0), low, high, low + within * (high - low)])
    error = (fake_quantize(x, affine.scale, affine.zero_point, affine.grid) - x).abs()
    assert error[0] == 0
    assert bool((error <= affine.scale * 0.5001 + 1e-6 * x.abs()).all())


@pytest.mark.parametrize(
    ("scale", "zero_point"),
    [
        (torch.tensor(0.0), torch.tensor(0.0)),
        (torch.tensor(-1.0), torch.tensor(0.0)),
        (torch.tensor(torch.nan), torch.tensor(0.0)),
        (torch.tensor(torch.inf), torch.tensor(0.0)),
        (torch.ones(2), torch.zeros(())),
        (torch.tensor(1.0), torch.tensor(0.5)),
        (torch.tensor(1.0), torch.tensor(-1.0)),
        (torch.tensor(1.0), torch.tensor(16.0)),
    ],
)
def test_a_grid_that_cannot_be_is_refused(scale: Tensor, zero_point: Tensor) -> None:
    with pytest.raises(ValueError, match="need"):
        AffineGrid(scale, zero_point, IntegerGrid(4, symmetric=False))


@pytest.mark.parametrize(("num_bits", "symmetric", "expected"), [
    (3, True, 4), (4, True, 4), (4, False, 7), (6, True, 7), (8, True, 7)
])  # fmt: skip
def test_two_codes_share_a_byte_up_to_four_signed_bits(num_bits: int, symmetric: bool, expected: int) -> None:
    assert TensorFormat(IntegerGrid(num_bits, symmetric), PerChannel(0)).code_bytes(7) == expected

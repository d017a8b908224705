import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d4c.quantizers.functional import quantize
from d4c.quantizers.grids import IntegerGrid, place_grid
from d4c.quantizers.pair_safe import clamp_pairs, column_pairs, is_pair_safe, pair_safe_span

SHAPES = [(4, 6), (4, 7), (4, 1), (4, 4, 3, 3), (4, 3, 3, 3), (4, 3, 2, 2), (4, 5, 1, 1), (4, 1, 3, 3)]


def saturates(codes: Tensor) -> bool:
    """Whether a kernel that adds neighbouring u8 x s8 products in int16 goes wrong for some activations.

    The sum is linear in each activation, so 0 and 255 are the worst of 0 .. 255. Convolutions are read as (height,
    width, channel); with odd channels one runtime pairs on across positions, another within each position.
    """
    last = codes.double().movedim(1, -1)  # [out, .., channel]
    within = F.pad(last, (0, last.shape[-1] % 2)).reshape(len(codes), -1, 2)
    flat = last.reshape(len(codes), -1)
    across = F.pad(flat, (0, flat.shape[1] % 2)).reshape(len(codes), -1, 2)
    return any(
        bool(((sums := pairs @ torch.tensor(activations, dtype=torch.float64)) > 32767).any() or (sums < -32768).any())
        for pairs in (within, across)
        for activations in itertools.product((0, 255), repeat=2)
    )


def random_weight(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator)
    if kind == "equal":
        w = torch.ones(shape)
    elif kind == "ties":  # whole and half steps of a grid of step 1 / 127
        w = torch.randint(-254, 255, shape, generator=generator) / 254
    elif kind == "heavy tail":
        w = w**5
    elif kind == "almost equal":
        w = -1 + 1e-6 * w
    return w


def test_pairs_follow_the_order_in_which_kernels_read() -> None:
    # Column = channel * positions + position; read position by position, channels innermost.
    assert [p.tolist() for p in column_pairs(torch.Size([1, 5]))] == [[[0, 1], [2, 3]]]
    assert [p.tolist() for p in column_pairs(torch.Size([1, 2, 1, 2]))] == [[[0, 2], [1, 3]]]
    # 3 channels, 2 positions, read as 0 2 4 | 1 3 5: across positions, and within each with the last left alone.
    across, within = [[0, 2], [4, 1], [3, 5]], [[0, 2], [1, 3]]
    assert [p.tolist() for p in column_pairs(torch.Size([1, 3, 1, 2]))] == [across, within]


def test_span_is_the_largest_weight_or_same_sign_pair_sum() -> None:
    weight = torch.tensor([[0.6, 0.5, -0.9, 0.2], [0.6, -0.5, -0.9, 0.2], [-0.3, -0.4, 0.1, 0.1]])
    torch.testing.assert_close(pair_safe_span(weight), torch.tensor([1.1, 0.9, 0.7]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["normal", "equal", "ties", "heavy tail", "almost equal"])
def test_rounding_to_nearest_on_the_pair_safe_span_never_saturates(kind: str, shape: tuple[int, ...]) -> None:
    grid = IntegerGrid(8, symmetric=True)
    for seed in range(5):
        weight = random_weight(kind, shape, seed)
        span = pair_safe_span(weight).reshape(-1, *[1] * (len(shape) - 1))
        affine = place_grid(-span, span, grid)
        nearest = quantize(weight, affine.scale, affine.zero_point, grid)
        assert not saturates(nearest)
        assert is_pair_safe(nearest)
        up = clamp_pairs(((weight / affine.scale).floor() + 1).clamp(grid.qmin, grid.qmax))  # learned rounding's worst
        assert not saturates(up)


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), reach=st.sampled_from([64, 66, 80, 128]))
def test_the_check_says_what_saturation_says_and_clamping_cures_it(
    shape: tuple[int, ...], seed: int, reach: int
) -> None:
    codes = torch.randint(-reach, reach, shape, generator=torch.Generator().manual_seed(seed)).float()
    assert is_pair_safe(codes) is not saturates(codes)
    cured = clamp_pairs(codes)
    assert not saturates(cured)
    assert bool((cured.abs() <= codes.abs()).all())
    assert bool((cured * codes >= 0).all())
    assert torch.equal(cured, codes) or saturates(codes)


def test_clamping_shrinks_the_larger_of_a_pair_to_a_sum_of_128() -> None:
    codes = torch.tensor([[127.0, 2, 30, 110, -128, -1, 127, -128, 100, 28, -128, -128]])
    assert clamp_pairs(codes).tolist() == [[126.0, 2, 30, 98, -127, -1, 127, -128, 100, 28, 0, -128]]

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d4c.artifact.packing import pack_nibbles, unpack_nibbles


def codes(*values: int) -> np.ndarray:
    return np.array(values, np.int8)


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        ((1, 2), [0x21]),  # low nibble first
        ((1, 2, 3, 4), [0x21, 0x43]),
        ((1, 2, 3), [0x21, 0x03]),  # an odd number is padded with 0
        ((7,), [0x07]),
        ((-1,), [0x0F]),  # two's complement: 16 - 1
        ((-8, 7), [0x78]),
        ((7, -8), [0x87]),
        ((-1, -1, -2), [0xFF, 0x0E]),
        ((0, 0), [0x00]),
        ((), []),
    ],
)
def test_nibbles_are_as_by_hand(values: tuple[int, ...], packed: list[int]) -> None:
    array = pack_nibbles(codes(*values))
    assert (array.tolist(), array.dtype) == (packed, np.uint8)
    back = unpack_nibbles(np.array(packed, np.uint8), (len(values),))
    assert (tuple(back.tolist()), back.dtype) == (values, np.int8)


def test_every_byte_comes_back() -> None:
    packed = np.arange(256, dtype=np.uint8)
    unpacked = unpack_nibbles(packed, (256, 2))
    # the low nibble is the remainder by 16, the high one the quotient; from 8 on they are negative
    assert unpacked.tolist() == [[(b % 16 + 8) % 16 - 8, (b // 16 + 8) % 16 - 8] for b in range(256)]
    assert np.array_equal(pack_nibbles(unpacked), packed)


@settings(deadline=None, max_examples=60)
@given(shape=st.lists(st.integers(0, 5), max_size=4).map(tuple), seed=st.integers(0, 999))
def test_unpack_inverts_pack_for_every_shape(shape: tuple[int, ...], seed: int) -> None:
    array = np.random.default_rng(seed).integers(-8, 8, shape, np.int8)
    kept = array.copy()
    packed = pack_nibbles(array)
    assert packed.shape == (-(-array.size // 2),)
    assert np.array_equal(unpack_nibbles(packed, shape), array)
    assert np.array_equal(array, kept)


def test_codes_are_taken_in_c_order_whatever_their_memory() -> None:
    array = codes(1, 2, 3, 4, 5, 6).reshape(2, 3)
    assert pack_nibbles(array.T).tolist() == [0x41, 0x52, 0x63]  # 1 4 | 2 5 | 3 6


@pytest.mark.parametrize("value", [8, -9, 127, -128])
def test_a_code_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"{value}"):
        pack_nibbles(codes(0, value))


@pytest.mark.parametrize(("num_bytes", "shape"), [(1, (3,)), (3, (3,)), (0, (1,)), (1, (0,)), (2, (2, 3))])
def test_bytes_that_are_not_as_many_as_the_shape_needs_are_refused(num_bytes: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="need"):
        unpack_nibbles(np.zeros(num_bytes, np.uint8), shape)

"""Two 4-bit codes a byte, low nibble first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack codes -8..7 of any shape, in C order; an odd number is padded with 0.

    Returns:
        [ceil(number of codes / 2)].

    Raises:
        ValueError: a code does not fit four bits.
    """
    if codes.size and (codes.min() < -8 or codes.max() > 7):
        raise ValueError(f"need codes -8..7, got {codes.min()}..{codes.max()}")
    nibbles = codes.reshape(-1).astype(np.uint8) & 15
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8)


def unpack_nibbles(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The inverse of `pack_nibbles`.

    Raises:
        ValueError: the bytes are not as many as the shape needs.
    """
    count = int(np.prod(shape))
    if packed.shape != ((count + 1) // 2,):
        raise ValueError(f"need {(count + 1) // 2} bytes for shape {shape}, got {packed.shape}")
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8).reshape(shape)

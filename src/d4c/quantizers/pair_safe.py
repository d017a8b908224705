"""8-bit weights that no integer kernel saturates on.

On processors without VNNI, u8 x s8 kernels add the products of two neighbouring weights in 16 bits (vpmaddubsw). With
activations up to 255 the sum stays below 2^15 if and only if two neighbours of the same sign add up to at most 128.
Neighbours are columns 2i and 2i+1 in the order in which a kernel reads them.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_PAIR_SUM = 128


def column_pairs(shape: torch.Size) -> list[Tensor]:
    """Which columns of a weight flattened to [out, column] a kernel adds in 16 bits.

    A linear's neighbours are input features. A convolution is read as (height, width, channel), so with an even number
    of input channels neighbours are channels at one kernel position. With an odd number the runtimes differ: one pairs
    on across positions, the other pairs channels within each position and leaves the last alone; both are listed.

    Args:
        shape: [out, in] or [out, in, height, width].

    Returns:
        index tensors [pair, 2]; within one tensor no column appears twice.
    """
    channels, positions = shape[1], shape[2:].numel()
    order = torch.arange(channels * positions).reshape(channels, positions).T  # [position, channel] -> column
    flat = order.reshape(-1)
    pairs = [flat[: len(flat) // 2 * 2].reshape(-1, 2)]
    if channels % 2 and positions > 1:
        pairs.append(order[:, : channels // 2 * 2].reshape(-1, 2))
    return [p for p in pairs if len(p)]


def pair_safe_span(weight: Tensor) -> Tensor:
    """The magnitude an 8-bit symmetric grid must reach, row by row, so that rounding keeps the weight pair-safe.

    max(max |w|, max |w_a + w_b| over neighbours of the same sign).

    Args:
        weight: [out, in] or [out, in, height, width].

    Returns:
        [out], >= 0.
    """
    rows = weight.reshape(len(weight), -1)  # [out, column]
    span = rows.abs().amax(dim=1)  # [out]
    for pairs in column_pairs(weight.shape):
        pair = rows[:, pairs]  # [out, pair, 2]
        same_sign = pair.prod(dim=-1) > 0
        span = torch.maximum(span, (pair.sum(dim=-1).abs() * same_sign).amax(dim=1))
    return span


def clamp_pairs(codes: Tensor) -> Tensor:
    """Bring neighbours of the same sign whose sum exceeds 128 back to it, shrinking the larger of the two.

    Args:
        codes: whole numbers -128..127, [out, in] or [out, in, height, width].

    Returns:
        the same shape, pair-safe; pairs that were safe are unchanged.
    """
    rows = codes.reshape(len(codes), -1).clone()  # [out, column]
    for pairs in column_pairs(codes.shape):
        pair = rows[:, pairs]  # [out, pair, 2]
        same_sign = pair.prod(dim=-1) > 0
        excess = ((pair.sum(dim=-1).abs() - MAX_PAIR_SUM) * same_sign).clamp(min=0)  # [out, pair]
        larger = pair.abs().argmax(dim=-1, keepdim=True)  # [out, pair, 1]
        step = (excess * pair.sum(dim=-1).sign()).unsqueeze(-1)  # [out, pair, 1]
        rows[:, pairs] = pair - torch.zeros_like(pair).scatter(-1, larger, step)
    return rows.reshape(codes.shape)


def is_pair_safe(codes: Tensor) -> bool:
    """Whether no two neighbours of the same sign add up to more than 128 in magnitude; codes as for `clamp_pairs`."""
    rows = codes.reshape(len(codes), -1)
    for pairs in column_pairs(codes.shape):
        pair = rows[:, pairs].float()  # [out, pair, 2]
        above, below = pair.clamp(min=0).sum(dim=-1), pair.clamp(max=0).sum(dim=-1)
        if bool((above > MAX_PAIR_SUM).any() or (below < -MAX_PAIR_SUM).any()):
            return False
    return True

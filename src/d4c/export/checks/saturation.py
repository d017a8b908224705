"""Whether u8 x s8 products, added in neighbouring pairs, fit 16 bits on processors without VNNI."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d4c.export.checks.graph_layers import GraphLayer
from d4c.export.checks.row import Row

MAX_INT16, MIN_INT16 = 2**15 - 1, -(2**15)


def worst_pair(codes: NDArray[np.int8], largest_code: int) -> tuple[int, int]:
    """The lowest and the highest sum of two neighbouring products that an input can cause.

    A linear's neighbours are input features 2i and 2i+1. A convolution is read as (height, width, channel); of an odd
    number of channels one runtime pairs on across positions and another within each position: both are looked at.

    Args:
        codes: [out, in] or [out, in, height, width]; largest_code: of the input, its lowest is 0.
    """
    rows = np.ascontiguousarray(codes.transpose(0, *range(2, codes.ndim), 1)).astype(np.int32)  # channels last
    orders = [rows.reshape(len(rows), -1)]  # [out, column]
    if rows.shape[-1] % 2 and rows.ndim > 2:
        orders.append(np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, 1)]).reshape(len(rows), -1))
    low = high = 0
    for columns in orders:
        pairs = np.pad(columns, ((0, 0), (0, columns.shape[1] % 2))).reshape(len(columns), -1, 2)
        low = min(low, int(np.minimum(pairs, 0).sum(axis=2).min()) * largest_code)
        high = max(high, int(np.maximum(pairs, 0).sum(axis=2).max()) * largest_code)
    return low, high


def saturation_rows(tower: str, layers: list[GraphLayer]) -> list[Row]:
    """Which layers could saturate, by name."""
    if not layers:
        return []
    sums = {layer.name: worst_pair(layer.codes, layer.largest_code) for layer in layers}
    unsafe = [name for name, (low, high) in sums.items() if high > MAX_INT16 or low < MIN_INT16]
    low, high = min(s[0] for s in sums.values()), max(s[1] for s in sums.values())
    rows = [Row(f"{tower}: pairs", f"sums from {low} to {high} fit 16 bits" if not unsafe else "saturate", not unsafe)]
    return rows + [Row(f"{tower}: saturates", f"{name}: {sums[name]}", False) for name in unsafe]

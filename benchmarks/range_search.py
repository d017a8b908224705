"""How fast and how good the histogram search of ranges is, against brute force.

    python benchmarks/range_search.py [--values 1000000] [--accuracy-values 20000] [--threads 1] [--all-candidates]

Both searches run in this process on the same tensors. Brute force scores 25,600 candidates at 8 bits, one pass over all
values each; without --all-candidates it is timed on every 64th candidate and multiplied by 64. The second table takes
smaller tensors, so that brute force can score everything, and gives the ratio of the errors found.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from d4c.quantizers.grids import IntegerGrid
from d4c.quantizers.range_search import LP_EXPONENT, candidates, lp_range, lp_range_brute_force, lp_scores

SHAPES = {
    "normal": lambda x: x,
    "one-sided": lambda x: x.relu(),
    "outlier-heavy": lambda x: x * (1 + 40 * (x.abs() > 3.2)),
}


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def brute_force_seconds(rows: Tensor, grid: IntegerGrid, every: int) -> float:
    low, high = candidates(rows, grid)
    every = min(every, max(1, low.shape[1] // 50))  # one-sided tensors have only 100 candidates
    part = slice(None, None, every)
    scored = low[:, part].shape[1]
    spent = seconds(lambda: lp_scores(rows, torch.ones_like(rows), low[:, part], high[:, part], grid, LP_EXPONENT))
    return spent * low.shape[1] / scored


def error(rows: Tensor, grid: IntegerGrid, search: Callable[[Tensor, IntegerGrid], object]) -> float:
    affine = search(rows, grid)
    codes = (rows / affine.scale).round().add(affine.zero_point).clamp(grid.qmin, grid.qmax)  # type: ignore[attr-defined]
    return float(((codes - affine.zero_point) * affine.scale - rows).abs().pow(LP_EXPONENT).mean())  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--accuracy-values", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--all-candidates", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {args.threads} threads")

    draw = torch.randn(1, args.values, generator=torch.Generator().manual_seed(0))
    print(f"\n8 bits, asymmetric, {args.values:,} values\ntensor          histogram   brute force   ratio")
    for name, shape in SHAPES.items():
        rows, grid = shape(draw), IntegerGrid(8, False)
        fast = seconds(lambda rows=rows, grid=grid: lp_range(rows, grid), repeats=3)
        slow = brute_force_seconds(rows, grid, 1 if args.all_candidates else 64)
        print(f"{name:<15} {fast:>8.3f} s {slow:>11.1f} s {slow / fast:>7.0f}")

    draw = torch.randn(1, args.accuracy_values, generator=torch.Generator().manual_seed(1))
    print(f"\n{args.accuracy_values:,} values: error found, histogram / brute force")
    print("tensor          bits  symmetric   ratio")
    for name, shape in SHAPES.items():
        for bits in (2, 4, 6, 8):
            for symmetric in (False, True):
                rows, grid = shape(draw), IntegerGrid(bits, symmetric)
                ratio = error(rows, grid, lp_range) / error(rows, grid, lp_range_brute_force)
                print(f"{name:<15} {bits:>4} {symmetric!s:>10} {ratio:>7.4f}")


if __name__ == "__main__":
    main()

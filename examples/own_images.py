"""Calibrate with images of your own making, beside d4c's and beside shapes that need no model.

    python examples/own_images.py tiny --out RUNS

Write your idea into `waves` and run it again; RUNS/waves/contact_sheet.png shows the pictures. The figures are the
centred errors of image embeddings on pictures that nothing was calibrated on. These are synthetic too: what counts in
the end is

    d4c evaluate RUNS/waves --dataset wds/NAME --root DATA
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import d4c

COUNT, SIDE, SEED = 64, 256, 0
WAVES, MOST_CYCLES = 12, 16.0  # of each picture, across its side


def waves(rng: np.random.Generator) -> Image.Image:
    """One picture: plane waves of random direction, length and colour, the longer the stronger."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    total = np.zeros((SIDE, SIDE, 3))
    for _ in range(WAVES):
        angle, cycles = rng.uniform(0, 2 * np.pi), rng.uniform(1, MOST_CYCLES)
        along = x * np.cos(angle) + y * np.sin(angle)
        wave = np.sin(2 * np.pi * (cycles * along + rng.uniform()))
        total += wave[..., None] * rng.normal(size=3) / cycles
    low, high = total.min(), total.max()
    return Image.fromarray((255 * (total - low) / (high - low)).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name, as d4c quantize takes it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="w4a8")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(SEED)
        for i in range(COUNT):
            waves(rng).save(Path(folder) / f"{i:02}.png")
        for name, images in (
            ("waves", folder),
            ("one_over_f", "one_over_f"),
            ("dead_leaves", "dead_leaves"),
            ("d4c", None),
        ):
            out, fresh = args.out / name, name == "waves"  # what others made is left as it is
            d4c.quantize(args.model, recipe=args.recipe, out=out, images=images, overrides=args.overrides, fresh=fresh)
            sets = json.loads((out / "report.json").read_text(encoding="utf-8"))["evaluation"]["sets"]
            rows.append((name, {kind: figures["image"]["centred_error"] for kind, figures in sets.items()}))
    print("calibrated with".ljust(16), *(kind.rjust(12) for kind in rows[0][1]))
    for name, errors in rows:
        print(name.ljust(16), *(f"{error:12.3f}" for error in errors.values()))


if __name__ == "__main__":
    main()

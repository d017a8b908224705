"""Draw what the training logs say.

    python training/curve.py training/tiny.jsonl training/tiny-rn.jsonl --out training/curve.png

Above, loss at each line of the logs; below, top-1 on the settings rows, which no model trained on. A stage begins at
each vertical line: image tower alone, text tower onto its class vectors, both together.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    figure, axes = plt.subplots(2, len(args.logs), figsize=(5 * len(args.logs), 5), sharex="col", squeeze=False)
    for column, path in zip(axes.T, args.logs, strict=True):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        minutes = [line["minutes"] for line in lines]
        starts = [b["minutes"] for a, b in itertools.pairwise(lines) if a["stage"] != b["stage"]]
        column[0].set_title(path.stem)
        for axis, key, label in zip(column, ("loss", "top1"), ("loss", "top-1, %"), strict=True):
            axis.plot(minutes, [line[key] for line in lines], marker=".")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
            for start in starts:
                axis.axvline(start, color="grey", linewidth=0.8)
        column[1].set_xlabel("minutes")
        column[1].set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()

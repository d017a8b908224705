"""How many predictions differ between an artifact's simulation and its exported graphs.

    python benchmarks/exported_predictions.py ARTIFACT... --root DATA [--dataset wds/tiny-imagenet] [--threads 1]

Prints top-1 of each, and the share of predictions that differ from the simulation in whole numbers; the float32
simulation stands beside the runtimes, since it differs too. About five minutes of one core an artifact of `tiny`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from d4c import evaluate, export, runtime
from d4c.artifact import read_artifact
from d4c.inputs import Encoder
from d4c.models import TorchEncoder
from d4c.package import thaw, thaw_integers


def encoders_of(folder: Path, threads: int, scratch: Path) -> dict[str, Encoder]:
    artifact = read_artifact(folder)
    found: dict[str, Encoder] = {
        "whole numbers": TorchEncoder(thaw_integers(artifact)),
        "float32 simulation": TorchEncoder(thaw(artifact)),
    }
    for layout, name in (("onnx", "onnxruntime"), ("openvino", "OpenVINO")):
        export.run(export.source_of(artifact), layout, scratch / layout)
        found[name] = runtime.open_encoder(scratch / layout, threads=threads)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--dataset", default="wds/tiny-imagenet")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table = Table("artifact", "runs in", "top-1", "predictions that differ")
    for folder in given.artifacts:
        with tempfile.TemporaryDirectory() as scratch:
            encoders = encoders_of(folder, given.threads, Path(scratch))
            task = evaluate.load_task(given.dataset, given.root, encoders["whole numbers"].preprocess)
            predictions = evaluate.classify(encoders, task, lambda *_: None)
        best = {name: p.logits.argmax(axis=1) for name, p in predictions.items()}
        for name, prediction in predictions.items():
            differ = (best[name] != best["whole numbers"]).mean()
            table.add_row(folder.name, name, f"{prediction.metrics['acc1']:.2%}", f"{differ:.2%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

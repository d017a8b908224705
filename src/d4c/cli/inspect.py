"""`d4c inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from d4c.cli import options
from d4c.cli.tables import megabytes, print_json, print_table


def inspect(
    folder: Annotated[Path, typer.Argument(help="An artifact folder.")],
    sites: Annotated[bool, typer.Option("--sites", help="List every quantized tensor.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Verify an artifact's checksums and say what it holds; loads no torch."""
    from d4c.artifact import read_artifact

    artifact = read_artifact(folder)
    manifest, quantization = artifact.manifest, artifact.quantization
    about: dict[str, Any] = {
        "folder": str(folder),
        "source": manifest["source"],
        "fingerprint": manifest["fingerprint"],
        "recipe": quantization["recipe"],
        "runs_as": quantization["runs_as"],
        "content_sha256": manifest["content_sha256"],
        "model_bytes": (folder / "model.safetensors").stat().st_size,
        "seed": manifest["seed"],
        "versions": manifest["versions"],
        "stages": manifest["stages"],
        "coverage": artifact.coverage(),
    }
    if as_json:
        print_json(about | ({"quantization": quantization} if sites else {}))
        return
    coverage = about["coverage"]
    rows = [[key, str(about[key])] for key in ("source", "recipe", "runs_as", "content_sha256", "fingerprint", "seed")]
    rows.append(["model.safetensors", megabytes(about["model_bytes"])])
    for bits, count in coverage["by_bits"].items():
        rows.append([f"parameters at {bits} bits", f"{count:,} ({count / coverage['parameters']:.1%})"])
    rows.append(
        ["block weights at 4 bits or fewer (text MLP at 8 left out)", f"{coverage['block_share_at_4_bits']:.1%}"]
    )
    print_table(str(folder), ["", "value"], rows)
    if sites:
        kinds = [(f"{layer} (weight)", f) for layer, f in quantization["weights"].items()]
        kinds += [
            *quantization["tensors"].items(),
            *((f"{layer} (input)", f) for layer, f in quantization["inputs"].items()),
        ]
        print_table(
            "sites", ["site", "bits", "symmetric"], [[n, str(f["bits"]), str(f["symmetric"])] for n, f in kinds]
        )

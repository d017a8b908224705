"""What commands print on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 160  # characters, where stdout is no terminal


def print_json(data: Any) -> None:
    """One JSON document."""
    print(json.dumps(data, indent=1))  # noqa: T201


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table; columns of figures stand to the right."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        figures = all(row[i][:1] in "-0123456789" for row in rows)
        table.add_column(column, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    console.print(table)


def print_summary(report: Mapping[str, Any], folder: Path) -> None:
    """The closing table of a quantization: what it cost, what was lost, where the files are."""
    size, worst, sets = report["size"], report["evaluation"]["worst"], report["evaluation"]["sets"]
    rows = [
        ["size", f"{megabytes(size['before_bytes'])} -> {megabytes(size['after_bytes'])} ({size['ratio']:.3f})"],
        ["runs as", report["runs_as"]],
        ["image tower: worst centred error", f"{worst['image_centred_error']:.4f}"],
        ["image tower: same best prompt", f"{worst['image_top1']:.1%}"],
        ["text tower: centred error", f"{worst['text_centred_error']:.4f}"],
        ["text tower: same best prompt", f"{worst['text_top1']:.1%}"],
        ["both towers: same best prompt", f"{worst['top1']:.1%}"],
        ["float gallery, quantized query", f"{worst['mixed_index']:.1%}"],
    ]
    for bits, about in report["reconstruction"]["by_weight_bits"].items():
        text = f"error {about['error_ratio']:.2f} of round-to-nearest's, {about['codes_changed']:.0%} of codes changed"
        rows.append([f"layers at {bits} bits ({about['units']} units)", text])
    for stage, about in report["stages"].items():
        rows.append([f"{stage}: time", f"{about['seconds']:.1f} s"])
    rows.append(["calibration texts", f"{report['texts']}, templates: {report['templates']}"])
    rows.append(["artifact", str(folder)])
    rows.append(["calibration images", str(folder / "contact_sheet.png")])
    if left_out := report["images"].get("left_out"):  # reports of before lack it
        rows.append(["images left out", f"{left_out}, on which the float model itself runs away"])
    print_table(f"{report['model']}, recipe {report['recipe']} (worst of: {', '.join(sets)})", ["", "value"], rows)


def megabytes(count: int) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:.1f} MB"

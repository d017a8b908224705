"""The model card of an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

RUNS_AS = {
    "integers": "every linear and convolution of both towers computes in integers",
    "storage": "weights are stored as integers and are float after loading: smaller files, not faster",
    "simulation": "a simulation for research; no integer kernel computes it",
}


def model_card(report: Mapping[str, Any], quantization: Mapping[str, Any]) -> str:
    """README.md of an artifact: front matter that Hugging Face reads, and the figures of `report`."""
    size, worst = report["size"], report["evaluation"]["worst"]
    images, templates = report["images"], report["templates"]
    tags = ["clip", "quantized", *(["data-free"] if images["source"] != "folder" else [])]
    bits = ", ".join(
        f"{count / report['coverage']['parameters']:.1%} at {bits} bits"
        for bits, count in sorted(report["coverage"]["by_bits"].items(), key=lambda item: int(item[0]))
    )
    return f"""---
base_model: {json.dumps(report["model"], ensure_ascii=False)}
base_model_relation: quantized
library_name: d4c
pipeline_tag: zero-shot-image-classification
tags: [{", ".join(tags)}]
---

# {report["model"]}, quantized with d4c's recipe `{quantization["recipe"]}`

{RUNS_AS[quantization["runs_as"]].capitalize()}.

| | |
|---|---|
| parameters | {bits} |
| file | {size["after_bytes"] / 1e6:.1f} MB, {size["ratio"]:.3f} of the {size["before_bytes"] / 1e6:.1f} MB in float32 |
| calibrated with | {images["count"]} images: {images["source"]}; {report["texts"]} texts, templates: {templates} |
| image tower, worst centred error | {worst["image_centred_error"]:.4f} |
| text tower, centred error | {worst["text_centred_error"]:.4f} |
| same best prompt, both towers quantized, worst set | {worst["top1"]:.1%} |

Measured without real images, on held-out synthetic, 1/f, dead-leaves and ten-step images, 32 each; `report.json` has
every figure. Load it with `d4c.load_quantized(FOLDER)`.
"""

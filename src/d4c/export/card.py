"""The model card of an exported folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from d4c.artifact.exported import FLOAT_RECIPE, Exported
from d4c.export.layouts import Layout
from d4c.export.source import Source

EXACT = {
    "onnxruntime": """Integer products and their sums are exact on every x86-64 processor; what lies between them
(LayerNorm, softmax, GELU, residual sums of transformers) is float32. Optimisation of graphs must stay on (its default,
`ORT_ENABLE_ALL`): without it an integer graph is slower than a float one. Use onnxruntime 1.25 or newer.""",
    "openvino": """Integer products are exact on every x86-64 processor. Results differ from onnxruntime's within a
small tolerance, since OpenVINO fuses other parts. Without VNNI its linears are no faster in integers than in float;
convolutions are.""",
    "open_clip": "Weights alone carry the quantization.",
}


def export_card(layout: Layout, source: Source, exported: Exported, figures: Mapping[str, Any] | None) -> str:
    """README.md of an exported folder: front matter that Hugging Face reads, how to load it, what was measured.

    Args:
        figures: report.json of the artifact; None for a float model.
    """
    name = json.dumps(source.name, ensure_ascii=False)
    quantized = source.recipe != FLOAT_RECIPE
    title = f"quantized with d4c's recipe `{source.recipe}`" if quantized else "in float32"
    front = [f"base_model: {name}", *(["base_model_relation: quantized"] if quantized else [])]
    front += [f"library_name: {layout.library}", "pipeline_tag: zero-shot-image-classification"]
    front.append(f"tags: [{', '.join(['clip', *(_tags(figures) if quantized else [])])}]")
    lines = "\n".join(front)
    return f"""---
{lines}
---

# {source.name}, {title}, as `{layout.name}` reads it

{layout.usage(source)}
| | |
|---|---|
{_rows(exported, figures)}
{_limits(layout, quantized)}
`d4c.json` names the graphs, their inputs and outputs, and the SHA-256 of every file; `d4c verify FOLDER` checks both.
"""


def _tags(figures: Mapping[str, Any] | None) -> list[str]:
    data_free = figures is not None and figures["images"]["source"] != "folder"
    return ["quantized", *(["data-free"] if data_free else [])]


def _rows(exported: Exported, figures: Mapping[str, Any] | None) -> str:
    rows = [
        ("ids of texts", f"{exported.id_type}, {'padded to the context' if exported.fixed_length else 'any length'}"),
        ("embeddings", f"{exported.embed_dim} numbers{', of length 1' if exported.normalized else ', not normalised'}"),
        ("logits", f"{exported.logit_scale:.6g} x cosine{_bias(exported)}"),
        ("default template", exported.template),
        ("fingerprint of the float model", f"`{exported.fingerprint}`"),
    ]
    if exported.content_sha256 is not None:
        rows.append(("content of the artifact", f"`{exported.content_sha256}`"))
    if figures is not None:
        rows += _measured(figures)
    return "".join(f"| {left} | {right} |\n" for left, right in rows)


def _bias(exported: Exported) -> str:
    return "" if exported.logit_bias is None else f" {exported.logit_bias:+.6g}"


def _measured(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `d4c quantize` measured, on the simulation of these integers."""
    coverage, images, worst = figures["coverage"], figures["images"], figures["evaluation"]["worst"]
    bits = ", ".join(
        f"{count / coverage['parameters']:.1%} at {bits} bits"
        for bits, count in sorted(coverage["by_bits"].items(), key=lambda item: int(item[0]))
    )
    return [
        ("parameters", bits),
        ("weights of blocks at 4 bits", f"{coverage['block_share_at_4_bits']:.1%} (text MLPs at 8 bits left out)"),
        ("calibrated with", f"{images['count']} images: {images['source']}; {figures['texts']} texts"),
        ("image tower, worst centred error", f"{worst['image_centred_error']:.4f}"),
        ("text tower, centred error", f"{worst['text_centred_error']:.4f}"),
        ("same best prompt, both towers quantized, worst set", f"{worst['top1']:.1%}"),
    ]


def _limits(layout: Layout, quantized: bool) -> str:
    if not quantized:
        return ""
    return f"""
Figures were measured without real images, on held-out synthetic, 1/f, dead-leaves and ten-step images, 32 each.

{EXACT[layout.runtime]}
"""

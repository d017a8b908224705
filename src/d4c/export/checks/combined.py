"""The graph of both towers against the graphs of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.export.checks.agreement import Array, embedding_row, unit
from d4c.export.checks.row import Row

MAX_LOGIT_ERROR = 1e-4  # of the factor on cosines: what float32 loses in one product


def combined_rows(
    name: str, found: Mapping[str, NDArray[Any]], image: Array, text: Array, scale: float, bias: float | None
) -> list[Row]:
    """Whether its embeddings are those of the towers, and its logits what d4c.json says they are.

    Args:
        found: `image_embeds` [image, embedding], `text_embeds` [text, embedding], and `logits_per_image`.
        image, text: what the towers' own graphs put out.
        scale, bias: of the logits, scale * cosine + bias.
    """
    expected = scale * unit(found["image_embeds"]) @ unit(found["text_embeds"]).T + (bias or 0.0)
    error = float(np.abs(found["logits_per_image"] - expected).max())
    return [
        embedding_row(f"{name}: images", found["image_embeds"], image, image, "onnxruntime"),
        embedding_row(f"{name}: texts", found["text_embeds"], text, text, "onnxruntime"),
        Row(f"{name}: logits", f"largest difference {error:.1e}", error <= MAX_LOGIT_ERROR * scale),
    ]

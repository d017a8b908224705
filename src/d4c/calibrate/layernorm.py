"""Move part of the channels' spread from LayerNorm outputs into the weights that read them."""

from __future__ import annotations

import torch
from torch import Tensor

from d4c.images import ImageSet
from d4c.models import Clip
from d4c.models.attention import Block
from d4c.models.folding import fold_layernorm
from d4c.models.parts import TowerName, captured_inputs, keep_live, live_tokens, run_in_batches, tower_parts


def balance_layernorms(clip: Clip, images: ImageSet, ids: Tensor, exponent: float) -> Clip:
    """Centre every channel of every LayerNorm output on zero and divide it by range^exponent.

    r_j = range_j^exponent, normalised to geometric mean 1; m_j = the middle of channel j's range. With exponent 1 one
    scale fits all channels alike, but the weights inherit the spread; one half shares it.

    Args:
        ids: calibration texts, [text, token].

    Returns:
        a new model that computes the same.
    """
    device = clip.logit_scale.device
    shifts: dict[str, Tensor] = {}
    ratios: dict[str, Tensor] = {}
    ids = clip.text.trim(ids.to(device))
    towers: list[tuple[TowerName, Tensor, Tensor | None]] = [
        ("image", images.pixels.to(device), None),
        ("text", ids, live_tokens(clip, ids)),
    ]
    for tower, data, live in towers:
        stream = data
        for part in tower_parts(clip, tower):
            block = isinstance(dict(clip.named_modules()).get(part.name), Block)
            names = [f"{part.name}.attention.input", f"{part.name}.mlp.input"] if block else []
            with captured_inputs(clip, names) as seen:
                stream = run_in_batches(part, stream, data)
            for site in names:
                values = keep_live(torch.cat(seen[site]), live).flatten(0, -2)  # [token, channel]
                low, high = values.amin(dim=0), values.amax(dim=0)
                shifts[site] = (low + high) / 2
                log_ratio = exponent * (high - low).clamp(min=1e-6).log()
                ratios[site] = (log_ratio - log_ratio.mean()).exp()
    return fold_layernorm(clip, shifts, ratios)

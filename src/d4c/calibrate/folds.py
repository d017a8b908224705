"""Rewrite a float model on calibration inputs so that its tensors quantize better, without changing what it computes.

Every channel of a LayerNorm's output may be shifted and rescaled, because the weights behind it can undo both; and what
attention adds to all keys, or to all values, alike costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from d4c.images import ImageSet
from d4c.models import Clip
from d4c.models.attention import AttentionProducts, Block
from d4c.models.folding import centre_attention, fold_layernorm
from d4c.models.parts import Part, TowerName, captured_inputs, keep_live, live_tokens, run_in_batches, tower_parts
from d4c.quantizers.closed_form import Factor, WeightForm, ridge_move, solve
from d4c.quantizers.functional import fake_quantize
from d4c.quantizers.grids import TensorFormat
from d4c.quantizers.moments import Moments
from d4c.quantizers.range_search import lp_range
from d4c.quantizers.scheme import Scheme
from d4c.recipes import Calibrate

TRIAL_RIDGE = 0.03
TRIAL_ROWS = 64  # of each reader, on which exponents are compared
TRIAL_TOKENS_PER_CHANNEL = 8


def fold(
    clip: Clip,
    images: ImageSet,
    ids: Tensor,
    scheme: Scheme,
    config: Calibrate,
    *,
    towers: Sequence[TowerName] = ("image", "text"),
) -> Clip:
    """Do what a recipe asks for: centre attention, and move spread from LayerNorms into their readers.

    A LayerNorm's channels are centred and divided by r_j = range_j^e, normalised to geometric mean 1. With e = 1 one
    scale fits all channels alike, but the weights inherit the spread; one half shares it. Where a recipe names several
    exponents, each LayerNorm takes the one whose readers, quantized in closed form, lose least on inputs that they were
    not fitted to.

    Args:
        ids: calibration texts, [text, token]; scheme: in what form readers and their input will be.

    Returns:
        a new model that computes the same, or `clip` where there is nothing to do.
    """
    if not config.centre_attention and not any(config.layernorm_folds):
        return clip
    device = clip.logit_scale.device
    ids = clip.text.trim(ids.to(device))
    data: dict[TowerName, tuple[Tensor, Tensor | None]] = {
        "image": (images.pixels.to(device), None), "text": (ids, live_tokens(clip, ids)),
    }  # fmt: skip
    shifts: dict[str, Tensor] = {}
    ratios: dict[str, Tensor] = {}
    middles: dict[str, Tensor] = {}
    for tower in towers:
        inputs, live = data[tower]
        stream = inputs
        for part in tower_parts(clip, tower):
            norms = _norm_outputs(clip, part) if any(config.layernorm_folds) else []
            factors = _keys_and_values(clip, part) if config.centre_attention else []
            with captured_inputs(clip, [*norms, *factors]) as seen:
                stream = run_in_batches(part, stream, inputs)
            for site in norms:
                rows = keep_live(torch.cat(seen[site]), live).flatten(0, -2)  # [token, channel]
                shifts[site], ratios[site] = _fold_of(clip, site, rows, scheme, config.layernorm_folds)
            for site in factors:
                middles[site] = _middle(keep_live(torch.cat(seen[site]), live).flatten(0, -2))
    return fold_layernorm(centre_attention(clip, middles), shifts, ratios)


def _norm_outputs(clip: Clip, part: Part) -> list[str]:
    block = isinstance(dict(clip.named_modules()).get(part.name), Block)
    return [f"{part.name}.attention.input", f"{part.name}.mlp.input"] if block else []


def _keys_and_values(clip: Clip, part: Part) -> list[str]:
    names = [name for name, m in clip.named_modules() if isinstance(m, AttentionProducts) and part.owns(f"{name}.")]
    return [f"{name}.{site}" for name in names for site in ("k_out", "v_out")]


def _middle(rows: Tensor) -> Tensor:
    """Half way between each channel's smallest and largest value, [channel]."""
    return (rows.amin(dim=0) + rows.amax(dim=0)) / 2


def _ratio(rows: Tensor, exponent: float) -> Tensor:
    log_ratio = exponent * (rows.amax(dim=0) - rows.amin(dim=0)).clamp(min=1e-6).log()
    return (log_ratio - log_ratio.mean()).exp()


def _fold_of(clip: Clip, site: str, rows: Tensor, scheme: Scheme, exponents: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Shift and ratio of a LayerNorm's channels, [channel] each."""
    if len(exponents) == 1:
        return _middle(rows), _ratio(rows, exponents[0])
    readers = [layer for layer, read in clip.input_sites().items() if read == site and layer in scheme.weights]
    given = scheme.tensors.get(site) or (scheme.inputs.get(readers[0]) if readers else None)
    if not readers or given is None:
        return torch.zeros_like(rows[0]), torch.ones_like(rows[0])
    forms = {layer: scheme.weights[layer] for layer in readers}
    weights = {layer: clip.get_parameter(f"{layer}.weight").detach() for layer in readers}
    few = rows[:: max(1, len(rows) // (TRIAL_TOKENS_PER_CHANNEL * rows.shape[1]))]
    losses = {e: _trial(few, _middle(rows) * (e > 0), _ratio(rows, e), weights, forms, given) for e in exponents}
    best = min(losses, key=losses.__getitem__)
    return _middle(rows) * (best > 0), _ratio(rows, best)


@torch.no_grad()
def _trial(
    rows: Tensor, shift: Tensor, ratio: Tensor, weights: Mapping[str, Tensor], forms: Mapping[str, TensorFormat],
    given: TensorFormat,
) -> float:  # fmt: skip
    """What readers lose on the last quarter of the rows when they are solved on the others, behind the folded input."""
    x = (rows - shift) / ratio
    affine = lp_range(x.reshape(1, -1), given.grid)
    noisy = fake_quantize(x, affine.scale[0], affine.zero_point[0], given.grid)
    cut, total = 3 * len(x) // 4, 0.0
    for layer, whole in weights.items():
        weight = (whole * ratio)[:: max(1, len(whole) // TRIAL_ROWS)]
        fitted, judge = (
            Moments.of(x[part], noisy[part], weight, None, centred=True) for part in (slice(0, cut), slice(cut, None))
        )
        form, factor = (
            WeightForm(whole.shape, forms[layer].grid, forms[layer].pair_safe),
            Factor.of(fitted.gram, TRIAL_RIDGE),
        )
        target = weight + ridge_move(weight, weight @ fitted.cross, factor)
        found = solve(weight, target, fitted, factor, form, num_shrinks=1)
        total += float(judge.error(weight, found.change(weight), found.bias_shift).sum())
    return total

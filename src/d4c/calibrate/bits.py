"""Choose bits layer by layer so that a model fits a size: what each layer costs, and the best choice of all.

Sources: HAWQ-V2 (arXiv:1911.03852) for the sum of single layers' costs; here a cost is measured, not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from d4c.artifact import Work
from d4c.calibrate.observe import weight_grid
from d4c.models import Clip
from d4c.models.parts import TowerName
from d4c.models.walk import Walk
from d4c.quantizers.grids import TensorFormat
from d4c.quantizers.layers import QuantConv2d, QuantLinear
from d4c.quantizers.scheme import Scheme
from d4c.ranks import ALONE, Ranks
from d4c.recipes import Calibrate

CHOICES = (4, 8)  # 6-bit codes take a byte like those of 8 bits, and lose more
NOT_CHOSEN = ("image.patch_embedding", "image.stem.conv1", "text.token_embedding")  # what reads pixels, and the table
BUCKETS = 2**20  # steps in which sizes are counted, at most


def choosable(scheme: Scheme) -> list[str]:
    """The layers whose bits may be chosen: all with integer weights but the first ones, which the recipe rules."""
    return [layer for layer in scheme.weights if layer not in NOT_CHOSEN]


@torch.no_grad()
def sensitivities(
    clip: Clip,
    schemes: Mapping[int, Scheme],
    images: Tensor,
    ids: Tensor,
    config: Calibrate,
    *,
    work: Work | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, dict[int, float]]:
    """What the embedding loses if one layer's weight alone is rounded to nearest, all else float.

    Args:
        schemes: by number of bits, what the model would be if all layers that can be chosen for had so many.
        images: pixels [image, 3, size, size], and ids: texts [text, token], that nothing else is fitted to.

    Returns:
        by layer and bits, ‖ẑ − z‖² / ‖z − z̄‖² of its tower.
    """
    work = work or Work()
    inputs: dict[TowerName, Tensor] = {"image": images, "text": ids}
    walks = {tower: Walk.over(clip, tower, data) for tower, data in inputs.items()}
    layers = choosable(next(iter(schemes.values())))
    mine = {}
    for number in ranks.share(len(layers)):
        layer = layers[number]
        walk = walks["image" if layer.startswith("image.") else "text"]
        z, found = walk.outputs, {}
        for bits, scheme in schemes.items():
            stand_in = _rounded(clip.get_submodule(layer), scheme.weights[layer], config)
            changed = walk.outputs_with({layer: stand_in})
            found[bits] = float((changed - z).square().sum() / (z - z.mean(dim=0)).square().sum())
        mine[number] = found
        work.report("measure layers", number + 1, len(layers))
    return dict(zip(layers, ranks.collect_values(mine, len(layers)), strict=True))


def _rounded(module: nn.Module, weight_format: TensorFormat, config: Calibrate) -> nn.Module:
    assert isinstance(module, nn.Linear | nn.Conv2d)
    affine = weight_grid(module.weight, weight_format, config)
    if isinstance(module, nn.Conv2d):
        return QuantConv2d(module, affine, nn.Identity())
    return QuantLinear(module, affine, nn.Identity())


def choose_bits(
    costs: Mapping[str, Mapping[int, float]], sizes: Mapping[str, Mapping[int, int]], budget: int
) -> dict[str, int]:
    """The bits of each layer with the least sum of costs among those that fit the budget: a knapsack, solved exactly.

    Sizes are counted in what divides them all, if that makes at most 2^20 steps, else in a multiple of it, rounded up:
    the budget is never exceeded, and more of it never makes the sum of costs worse.

    Args:
        costs, sizes: by layer and bits; sizes and budget in bytes.

    Raises:
        ValueError: even the fewest bits do not fit.
    """
    layers = list(costs)
    least = {layer: min(sizes[layer].values()) for layer in layers}
    if sum(least.values()) > budget:
        raise ValueError(f"{budget} bytes are too few: {sum(least.values())} are needed")
    unit = max(1, math.gcd(*(size - least[layer] for layer in layers for size in sizes[layer].values())))
    most = sum(max(sizes[layer].values()) - least[layer] for layer in layers)
    step = unit * max(1, -(-most // (unit * BUCKETS)))
    extra = {
        layer: {bits: -(-(size - least[layer]) // step) for bits, size in sizes[layer].items()} for layer in layers
    }
    room = min((budget - sum(least.values())) // step, sum(max(steps.values()) for steps in extra.values()))
    best: NDArray[np.float64] = np.zeros(room + 1)  # by what is spent beyond the fewest bits, at most
    taken: list[NDArray[np.int8]] = []
    for layer in layers:
        options = sorted(costs[layer])
        totals = np.full((len(options), room + 1), np.inf)
        for i, bits in enumerate(options):
            spent = extra[layer][bits]
            if spent <= room:
                totals[i, spent:] = best[: room + 1 - spent] + costs[layer][bits]
        choice = totals.argmin(axis=0).astype(np.int8)
        best = np.take_along_axis(totals, choice[None].astype(np.int64), axis=0)[0]
        taken.append(choice)
    chosen, left = {}, room
    for layer, choice in zip(reversed(layers), reversed(taken), strict=True):
        bits = sorted(costs[layer])[int(choice[left])]
        chosen[layer] = bits
        left -= extra[layer][bits]
    return {layer: chosen[layer] for layer in layers}

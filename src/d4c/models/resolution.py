"""An image tower for smaller pictures: the same weights, positions interpolated."""

from __future__ import annotations

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4c.models.clip import Clip
from d4c.models.resnet import ModifiedResNet
from d4c.models.vit import VisionTransformer


def interpolate_positions(table: Tensor, prefix: int, side: int) -> Tensor:
    """Resample the positions of a square grid of patches, bicubic; at its own side the table comes back.

    Args:
        table: [prefix + patch, channel]; prefix: how many first rows belong to no patch; side: patches along a side.

    Returns:
        [prefix + side^2, channel].
    """
    grid = table[prefix:]
    old = round(len(grid) ** 0.5)
    if old == side:
        return table
    maps = grid.T.reshape(1, -1, old, old)  # [1, channel, row, column]
    maps = F.interpolate(maps, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:prefix], maps.flatten(2)[0].T])


def at_size(clip: Clip, size: int) -> nn.Module:
    """The image tower for pictures of another size, sharing all weights but positions with the model.

    Args:
        size: pixels along a side, a multiple of the tower's patch or of a ResNet's stride of 32.
    """
    tower = clip.image
    resized = _own(tower)
    if isinstance(tower, VisionTransformer):
        table, prefix, side = tower.position_embedding, int(tower.config.class_token), size // tower.config.patch_size
        resized.position_embedding = _positions(table, prefix, side)
    else:
        assert isinstance(tower, ModifiedResNet)
        resized._modules = dict(tower._modules)
        pool = _own(tower.pool)
        pool.position_embedding = _positions(tower.pool.position_embedding, 1, size // 32)
        resized.pool = pool
    resized.config = dataclasses.replace(tower.config, image_size=size)  # type: ignore[assignment]
    return resized


def _own(module: nn.Module) -> nn.Module:
    """A copy whose parameters can be replaced without touching the original's; they are shared until then."""
    mine = copy.copy(module)
    mine._parameters = dict(module._parameters)
    return mine


def _positions(table: Tensor, prefix: int, side: int) -> nn.Parameter:
    return nn.Parameter(interpolate_positions(table.detach(), prefix, side), requires_grad=False)

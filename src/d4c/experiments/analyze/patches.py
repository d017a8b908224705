"""Patch similarity: how alike an image's patches are within its foreground, within its background, and across."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d4c.images import ImageSet
from d4c.models import Clip
from d4c.models.parts import captured_inputs
from d4c.models.vit import VisionTransformer

LEAST_POSITIONS = 16
KINDS = ("foreground", "background", "across")


def patch_similarity(x: Tensor) -> Tensor:
    """G_pq = cos(x_p, x_q) for all pairs of patches, [image, patch, patch] (PSAQ-ViT, arXiv:2203.02250).

    Args:
        x: [image, patch, channel].
    """
    unit = F.normalize(x, dim=-1)
    return unit @ unit.transpose(1, 2)


def split_patches(x: Tensor, rows: int, columns: int) -> Tensor:
    """Split every image's patches into foreground and background, without a saliency model or boxes.

    The patches' unit vectors are centred on their mean; the sign along their first principal direction makes two
    groups. The foreground is the group with the smaller share of its patches on the image's border; on a tie the
    smaller group, then the one without the first patch.

    Args:
        x: [image, patch, channel], patches row by row, rows x columns of them.

    Returns:
        true for foreground, [image, patch].
    """
    unit = F.normalize(x.double(), dim=-1)
    left = torch.linalg.svd(unit - unit.mean(dim=1, keepdim=True), full_matrices=False)[0]
    group = left[:, :, 0] >= 0  # [image, patch]
    border = torch.ones(rows, columns, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    edge = border.flatten().to(x.device)  # [patch]

    def rank(g: Tensor) -> list[tuple[float, int, bool]]:
        size = g.sum(dim=1)
        share = (g & edge).sum(dim=1) / size.clamp(min=1)
        return list(zip(share.tolist(), size.tolist(), g[:, 0].tolist(), strict=True))

    first = [a < b for a, b in zip(rank(group), rank(~group), strict=True)]
    chosen = torch.tensor(first, device=x.device)[:, None]
    return torch.where(chosen, group, ~group)


def box_patches(boxes: Tensor, size: int, rows: int, columns: int) -> Tensor:
    """Patches whose centre lies in their image's box, [image, patch].

    Args:
        boxes: top, left, height, width in pixels, [image, 4]; size: the image's side in pixels.
    """
    y = (torch.arange(rows) + 0.5) * size / rows  # [row]
    x = (torch.arange(columns) + 0.5) * size / columns  # [column]
    top, left, height, width = (v[:, None] for v in boxes.cpu().unbind(dim=1))
    inside_rows = (y >= top) & (y < top + height)  # [image, row]
    inside_columns = (x >= left) & (x < left + width)  # [image, column]
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).flatten(1)


def pair_statistics(similarity: Tensor, foreground: Tensor) -> dict[str, dict[str, Tensor]]:
    """Mean and variance of the similarities of an image's pairs of different patches, by where the two lie.

    Args:
        similarity: [image, patch, patch]; foreground: [image, patch].

    Returns:
        for foreground, background and across `mean` and `variance` (biased), each [image]; NaN where an image has no
        such pair.
    """
    upper = torch.ones_like(similarity[0], dtype=torch.bool).triu(1)  # every pair once
    f, b = foreground, ~foreground
    pairs = {
        "foreground": f[:, :, None] & f[:, None, :],
        "background": b[:, :, None] & b[:, None, :],
        "across": f[:, :, None] ^ f[:, None, :],
    }
    found = {}
    for kind, inside in pairs.items():
        weight = (inside & upper).to(similarity)  # [image, patch, patch]
        count = weight.sum(dim=(1, 2))  # [image]
        mean = (similarity * weight).sum(dim=(1, 2)) / count
        variance = ((similarity - mean[:, None, None]).square() * weight).sum(dim=(1, 2)) / count
        found[kind] = {"mean": mean, "variance": variance}
    return found


def patch_layers(clip: Clip) -> dict[str, str]:
    """Where patches are looked at: a short label and the module whose input holds them.

    A ViT's attention outputs before their last linear, block by block; a ResNet's stages that have 16 positions or
    more.
    """
    if isinstance(clip.image, VisionTransformer):
        return {f"block {i}": f"image.{name}.attention.out" for i, (name, _) in enumerate(clip.image.named_blocks())}
    after = {1: "image.layer2.0", 2: "image.layer3.0", 3: "image.layer4.0", 4: "image.pool"}
    sides = {stage: clip.image.config.image_size // 2 ** (stage + 1) for stage in after}
    return {f"stage {stage}": after[stage] for stage, side in sides.items() if side**2 >= LEAST_POSITIONS}


def as_patches(x: Tensor, class_token: bool) -> Tensor:
    """What a ViT's attention (the class token first, if it has one) or a ResNet's stage put out.

    Returns:
        [image, patch, channel].
    """
    return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x[:, int(class_token) :]


def measure_set(clip: Clip, images: ImageSet) -> dict[str, Any]:
    """Patch statistics of one set at every layer of `patch_layers`.

    Returns:
        as JSON, `layers`: by label and kind of pair, `variance` and `mean` with their standard errors over images;
        `foreground_share`; where the set has boxes `boxes`: the same statistics with the box as foreground.
    """
    layers = patch_layers(clip)
    has_boxes = bool((images.boxes >= 0).all())
    found: dict[str, Any] = {"layers": {}, "boxes": {} if has_boxes else None}
    for label, x in patches_by_layer(clip, images.pixels, layers).items():
        side = round(x.shape[1] ** 0.5)
        similarity, foreground = patch_similarity(x), split_patches(x, side, side)
        found["layers"][label] = _summary(pair_statistics(similarity, foreground))
        found["foreground_share"] = float(foreground.float().mean())
        if has_boxes:
            boxed = box_patches(images.boxes, images.pixels.shape[-1], side, side).to(x.device)
            found["boxes"][label] = _summary(pair_statistics(similarity, boxed))
    return found


@torch.no_grad()
def patches_by_layer(clip: Clip, pixels: Tensor, layers: dict[str, str], batch: int = 32) -> dict[str, Tensor]:
    """Patches of images at several layers in one pass, each [image, patch, channel]."""
    with captured_inputs(clip, list(layers.values())) as seen:
        for part in pixels.split(batch):
            clip.encode_image(part.to(clip.logit_scale.device))
    class_token = isinstance(clip.image, VisionTransformer) and clip.image.config.class_token
    # popped, so that no layer is there twice
    return {label: as_patches(torch.cat(seen.pop(module)), class_token).cpu() for label, module in layers.items()}


def _summary(statistics: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float | None]]:
    summary: dict[str, dict[str, float | None]] = {}
    for kind, values in statistics.items():
        summary[kind] = {}
        for name, value in values.items():
            known = value[value.isfinite()].double().cpu().numpy()
            enough = len(known) > 1
            summary[kind][name] = float(known.mean()) if len(known) else None
            summary[kind][f"{name}_standard_error"] = float(known.std(ddof=1) / np.sqrt(len(known))) if enough else None
    return summary

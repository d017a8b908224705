"""The rows that a layer multiplies by its weight: tokens, or the patches under a convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rows_read(
    layer: nn.Linear | nn.Conv2d,
    x: Tensor,
    quantized: Tensor,
    token_weight: Tensor | None,
    most: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same rows of both streams, as many from each sample.

    Args:
        x, quantized: what the layer reads in each stream: [sample, token, in], [sample, in] or [sample, channel,
            height, width].
        token_weight: >= 0, [sample, token], of which those at 0 are left out; None takes all alike.
        most: rows to take from each sample, which are drawn where there are more; weighted tokens are all taken.
        generator: on the CPU.

    Returns:
        rows of `x` and of `quantized`, [row, column] with columns as in `weight.flatten(1)`, and their weights.
    """
    if isinstance(layer, nn.Conv2d):
        where = _drawn(len(x), _output_size(layer, x).numel(), most, generator, x.device)
        return _patches(layer, x, where), _patches(layer, quantized, where), None
    if x.ndim == 2:
        return x, quantized, None
    if token_weight is not None:
        live = token_weight > 0
        return x[live], quantized[live], token_weight[live]
    where = _drawn(len(x), x.shape[1], most, generator, x.device)
    sample = torch.arange(len(x), device=x.device)[:, None]
    return x[sample, where].flatten(0, 1), quantized[sample, where].flatten(0, 1), None


def _drawn(samples: int, places: int, most: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Places of each sample, [sample, place]."""
    if places <= most:
        return torch.arange(places, device=device).expand(samples, -1)
    return torch.rand(samples, places, generator=generator).argsort(dim=1)[:, :most].to(device)


def _output_size(conv: nn.Conv2d, x: Tensor) -> torch.Size:
    (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w) = conv.kernel_size, conv.stride, _padding(conv)
    height, width = x.shape[-2] + 2 * pad_h - kernel_h, x.shape[-1] + 2 * pad_w - kernel_w
    return torch.Size((height // stride_h + 1, width // stride_w + 1))


def _patches(conv: nn.Conv2d, x: Tensor, where: Tensor) -> Tensor:
    """What lies under the kernel at some of the output's places, [sample x place, channel x height x width]."""
    columns = _output_size(conv, x)[1]
    (kernel_h, kernel_w), (pad_h, pad_w) = conv.kernel_size, _padding(conv)
    top, left = where // columns * conv.stride[0], where % columns * conv.stride[1]  # [sample, place]
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h)).permute(0, 2, 3, 1)  # [sample, height, width, channel]
    sample = torch.arange(len(x), device=x.device)[:, None, None, None]
    down = top[:, :, None, None] + torch.arange(kernel_h, device=x.device)[:, None]
    right = left[:, :, None, None] + torch.arange(kernel_w, device=x.device)
    return padded[sample, down, right].movedim(-1, 2).flatten(2).flatten(0, 1)


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(conv.padding, str)
    height, width = conv.padding
    return height, width

"""Run the float model over the calibration set, part by part, and place a grid on everything it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4c.artifact.work import Work
from d4c.errors import CalibrationError
from d4c.images import ImageSet
from d4c.models import Clip
from d4c.models.parts import TowerName, captured_inputs, keep_live, padded_or_live, run_in_batches, tower_parts
from d4c.quantizers.functional import fake_quantize
from d4c.quantizers.grids import AffineGrid, IntegerGrid, PerChannel, PerToken, TensorFormat, place_grid
from d4c.quantizers.pair_safe import pair_safe_span
from d4c.quantizers.range_search import lp_range, lp_range_brute_force, minmax_range, output_range
from d4c.quantizers.ranges import Ranges
from d4c.quantizers.scheme import Scheme
from d4c.ranks import ALONE, Ranks
from d4c.recipes import Calibrate

Observe = Callable[[Tensor, IntegerGrid], AffineGrid]
OBSERVERS: dict[str, Observe] = {"lp": lp_range, "minmax": minmax_range}
EMPTY_ROW_BITS = 20
TOKENS_RESCORED = 2048  # tokens, or places of feature maps, on which the best few ranges are compared exactly
LEAST_SAMPLES = 4
BIAS_BITS = 30  # |bias code| stays below 2^30, so that an int32 accumulator has room for the products


def run(
    clip: Clip,
    images: ImageSet,
    ids: Tensor,
    scheme: Scheme,
    config: Calibrate,
    *,
    towers: Sequence[TowerName] = ("image", "text"),
    work: Work | None = None,
    ranks: Ranks = ALONE,
) -> Ranges:
    """Find the grid of every tensor that the scheme names.

    Activations are seen on the float model, text tokens only as far as they reach the embedding unless padding counts.
    The pixels' range is that between black and white, which no picture leaves. Weights of 8 bits cover every value
    (pair-safe ones their neighbours' sums too), fewer bits are searched, unless the recipe says otherwise.

    Args:
        clip: float, BatchNorm folded; it is not changed.
        ids: calibration texts, [text, token].
        towers: whose grids to find; neither tower's depend on the other.
        ranks: processes that share the search; each runs the whole float model.

    Raises:
        CalibrationError: a tensor is not finite.
    """
    work = work or Work()
    device = clip.logit_scale.device
    num = config.samples or None
    ids, live = padded_or_live(clip, ids[:num].to(device), padding=config.padding)
    data = {"image": (images.pixels[:num].to(device), None), "text": (ids, live)}
    tensors: dict[str, AffineGrid] = {}
    inputs: dict[str, AffineGrid] = {}
    for tower in towers:
        _observe_tower(clip, tower, *data[tower], scheme, config, work, ranks, tensors, inputs)
    reads = clip.input_sites()
    chosen = {layer: f for layer, f in scheme.weights.items() if layer.partition(".")[0] in towers}
    mine = {}
    for i, layer in _shared(list(chosen), ranks):
        affine = weight_grid(clip.get_submodule(layer).weight, chosen[layer], config)  # type: ignore[arg-type]
        source = tensors.get(reads.get(layer, "")) or inputs.get(layer)
        mine[i] = _room_for_bias(affine, clip.get_submodule(layer), source)
        work.report("calibrate weights", i + 1, len(chosen))
    return Ranges(_everyones(mine, {layer: f.grid for layer, f in chosen.items()}, ranks), tensors, inputs)


def _shared(sites: list[str], ranks: Ranks) -> list[tuple[int, str]]:
    """The sites that this process places grids for, with their numbers."""
    return [(i, sites[i]) for i in ranks.share(len(sites))]


def _everyones(mine: Mapping[int, AffineGrid], grids: Mapping[str, IntegerGrid], ranks: Ranks) -> dict[str, AffineGrid]:
    """All sites' placed grids, in order, whoever placed them."""
    placed = ranks.collect({i: [a.scale, a.zero_point] for i, a in mine.items()}, len(grids))
    return {site: AffineGrid(scale, zero, grids[site]) for site, (scale, zero) in zip(grids, placed, strict=True)}


def _observe_tower(
    clip: Clip, tower: TowerName, data: Tensor, live: Tensor | None, scheme: Scheme, config: Calibrate, work: Work,
    ranks: Ranks, tensors: dict[str, AffineGrid], inputs: dict[str, AffineGrid],
) -> None:  # fmt: skip
    """Add the grids of a tower's tensor sites to `tensors`, those of its layers' own inputs to `inputs`."""
    stream, parts = data, tower_parts(clip, tower)
    for number, part in enumerate(parts):
        wanted = {**_placed(scheme.tensors, part.owns), **_placed(scheme.inputs, part.owns)}
        wanted.pop("image.pixels", None)
        with captured_inputs(clip, list(wanted)) as seen:
            stream = run_in_batches(part, stream, data)
        mine = {}
        for i, site in _shared(list(wanted), ranks):
            values = keep_live(torch.cat(seen.pop(site)), live)
            if not bool(values.isfinite().all()):
                raise CalibrationError(f"{site}: activations are not finite; are the weights sound?")
            mine[i] = _observe(clip, site, values, wanted[site], config)
        for site, affine in _everyones(mine, {site: f.grid for site, f in wanted.items()}, ranks).items():
            (tensors if site in scheme.tensors else inputs)[site] = affine
        work.report(f"calibrate {tower}", number + 1, len(parts))
    if tower == "image" and "image.pixels" in scheme.tensors:
        low, high = (torch.from_numpy(v).to(data.device) for v in clip.preprocess.valid_range())
        tensors["image.pixels"] = place_grid(low.min(), high.max(), scheme.tensors["image.pixels"].grid)


def _observe(clip: Clip, site: str, values: Tensor, tensor_format: TensorFormat, config: Calibrate) -> AffineGrid:
    if config.range == "output_error" and not isinstance(tensor_format.granularity, PerChannel):
        return _place_for_readers(values, _readers(clip, site), tensor_format.grid)
    return _place(values, tensor_format, OBSERVERS.get(config.range, lp_range))


def _placed(formats: Mapping[str, TensorFormat], owns: Callable[[str], bool]) -> dict[str, TensorFormat]:
    return {s: f for s, f in formats.items() if owns(s) and not isinstance(f.granularity, PerToken)}


def _place(values: Tensor, tensor_format: TensorFormat, observe: Observe) -> AffineGrid:
    """Turn values into rows that share a scale, observe them, and give the scale the shape that broadcasts."""
    if not isinstance(tensor_format.granularity, PerChannel):
        affine = observe(values.reshape(1, -1), tensor_format.grid)
        return AffineGrid(affine.scale.reshape(()), affine.zero_point.reshape(()), tensor_format.grid)
    rows = values.movedim(tensor_format.granularity.axis, 0).flatten(1)  # [channel, value]
    affine = observe(rows, tensor_format.grid)
    return AffineGrid(affine.scale.flatten(), affine.zero_point.flatten(), tensor_format.grid)


def _readers(clip: Clip, site: str) -> list[nn.Linear | nn.Conv2d]:
    """The layers that read a tensor, or the one layer whose input is meant."""
    names = [layer for layer, read in clip.input_sites().items() if site in (layer, read)]
    return [clip.get_submodule(name) for name in names]  # type: ignore[misc]


def _place_for_readers(values: Tensor, readers: Sequence[nn.Linear | nn.Conv2d], grid: IntegerGrid) -> AffineGrid:
    """One grid for all values, judged by its readers' outputs, or by itself where nothing reads it.

    Args:
        values: [.., channel] or, in front of convolutions, [sample, channel, height, width].
    """
    maps = bool(readers) and isinstance(readers[0], nn.Conv2d)
    if not maps:
        values = values.flatten(0, -2)  # [token, channel]
    weights = values.new_ones(())
    if readers:
        axes = [0, 2, 3] if maps else [0]
        weights = torch.stack([layer.weight.detach().square().sum(dim=axes) for layer in readers]).sum(dim=0)
    if maps:
        weights = weights[:, None, None]
    stride = min(len(values) * values[0].numel() // (TOKENS_RESCORED * values.shape[1]), len(values) // LEAST_SAMPLES)
    few = values[:: max(1, stride)]

    def output_error(affine: AffineGrid) -> Tensor:
        error = few - fake_quantize(few, affine.scale, affine.zero_point, grid)
        if not readers:
            return error.square().sum()
        return torch.stack([_without_bias(layer, error).square().sum() for layer in readers]).sum()

    return output_range(values, weights, grid, output_error)


def _without_bias(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    weight = layer.weight.detach()
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding)
    return F.linear(x, weight)


def weight_grid(weight: Tensor, weight_format: TensorFormat, config: Calibrate) -> AffineGrid:
    """A scale for each output channel, [out, 1, ..]."""
    rows = weight.detach().flatten(1)  # [out, column]
    grid = weight_format.grid
    if weight_format.pair_safe:
        span = pair_safe_span(weight.detach())[:, None]  # [out, 1]
        affine = place_grid(-span, span, grid)
    elif config.weight_range == "minmax" or (
        config.weight_range == "auto" and (grid.num_bits >= 8 or config.range == "minmax")
    ):
        affine = minmax_range(rows, grid)
    else:
        affine = lp_range_brute_force(rows, grid) if grid.symmetric else lp_range(rows, grid)
    shape = (-1, *[1] * (weight.ndim - 1))
    return AffineGrid(affine.scale.reshape(shape), affine.zero_point.reshape(shape), grid)


def _room_for_bias(affine: AffineGrid, layer: nn.Module, source: AffineGrid | None) -> AffineGrid:
    """Choose scales such that the bias fits 32 bits in units of input scale x weight scale: s_w >= |b| / (s_a 2^30).

    A row without weights has nothing but its bias, which gets 20 bits of its own: s_w = |b| / (s_a 2^20).
    """
    bias = getattr(layer, "bias", None)
    if bias is None or source is None or source.scale.ndim:
        return affine
    weight: Tensor = layer.weight  # type: ignore[assignment]
    unit = (bias.detach().abs() / source.scale).reshape(affine.scale.shape)
    empty = (weight.detach().flatten(1).abs().amax(dim=1) == 0).reshape(affine.scale.shape) & (unit > 0)
    scale = torch.where(empty, unit / 2**EMPTY_ROW_BITS, torch.maximum(affine.scale, unit / 2**BIAS_BITS))
    return AffineGrid(scale, affine.zero_point, affine.grid)

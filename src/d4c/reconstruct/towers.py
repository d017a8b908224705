"""Walk both towers, float and quantized stream side by side, and reconstruct unit after unit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d4c.artifact.work import Arrays, Work
from d4c.images import ImageSet
from d4c.models import Clip, QuantizedClip
from d4c.models.attention import Block
from d4c.models.parts import Part, TowerName, captured_inputs, keep_live, padded_or_live, run_in_batches, tower_parts
from d4c.recipes import Reconstruct
from d4c.recipes.seeds import derive_seed
from d4c.reconstruct.learn import Learned, Samples, learn, unit_error
from d4c.reconstruct.units import Unit, units_of


@dataclass(frozen=True)
class UnitReport:
    """What reconstruction did to one unit.

    Args:
        weight_bits: of its layers, the fewest.
        nearest_error, learned_error: mean squared output error on held-out samples, round-to-nearest against learned.
        codes_changed: share of its codes that differ from round-to-nearest.
        kept: whether the learned rounding stays; it goes where it is worse on held-out samples, if the recipe says so.
    """

    name: str
    weight_bits: int
    nearest_error: float
    learned_error: float
    codes_changed: float
    kept: bool


@dataclass(frozen=True)
class Inputs:
    """One tower's own inputs: calibration samples first, then held-out ones.

    Args:
        data: pixels, or trimmed ids; live: tokens that count, or None; num_fitted: how many samples are fitted to.
    """

    data: Tensor
    live: Tensor | None
    num_fitted: int


def run(
    clip: Clip,
    quantized: QuantizedClip,
    images: ImageSet,
    ids: Tensor,
    held_images: ImageSet,
    held_ids: Tensor,
    config: Reconstruct,
    *,
    seed: int = 0,
    padding: bool = False,
    towers: Sequence[TowerName] = ("image", "text"),
    work: Work | None = None,
) -> tuple[QuantizedClip, list[UnitReport]]:
    """Learn the rounding of every unit, in the order of the forward pass, on inputs that are already quantized.

    Args:
        clip: the float model `quantized` was wrapped from; neither is changed.
        ids: calibration texts [text, token]; held_images and held_ids judge and are never fitted to.
        padding: whether what follows the end of a text counts too.
        towers: which to reconstruct; neither tower's result depends on the other.
        work: remembers finished units.

    Returns:
        a new quantized model and a report for each unit.
    """
    work = work or Work()
    quantized = copy.deepcopy(quantized)
    device = clip.logit_scale.device
    pixels = torch.cat([images.pixels, held_images.pixels]).to(device)
    texts, live = padded_or_live(clip, torch.cat([ids, held_ids]).to(device), padding=padding)
    given = {"image": Inputs(pixels, None, len(images)), "text": Inputs(texts, live, len(ids))}
    total = sum(len(units_of(p, quantized, clip, config.unit)) for t in towers for p in tower_parts(quantized, t))
    reports: list[UnitReport] = []
    for tower in towers:
        inputs = given[tower]
        streams = (inputs.data, inputs.data)
        for part, float_part in zip(tower_parts(quantized, tower), tower_parts(clip, tower), strict=True):
            for unit in units_of(part, quantized, clip, config.unit):
                samples = _samples(unit, part, float_part, quantized, clip, streams, inputs, config.keep_quantized < 1)
                progress = _Progress(work, len(reports), total, config.iterations)
                reports.append(_reconstruct(unit, samples, inputs, quantized, config, tower, seed, progress))
            streams = (
                run_in_batches(float_part, streams[0], inputs.data),
                run_in_batches(part, streams[1], inputs.data),
            )
    return quantized, reports


@dataclass(frozen=True)
class _Progress:
    work: Work
    units_done: int
    units: int
    iterations: int

    def __call__(self, step: int) -> None:
        self.work.report("reconstruct", self.units_done * self.iterations + step, self.units * self.iterations)


def _samples(
    unit: Unit, part: Part, float_part: Part, quantized: QuantizedClip, clip: Clip,
    streams: tuple[Tensor, Tensor], inputs: Inputs, mixed: bool,
) -> Samples:  # fmt: skip
    """Run the part on both streams and keep what goes into the unit and what should come out."""
    with captured_inputs(clip, [unit.reference_input_of]) as seen:
        run_in_batches(float_part, streams[0], inputs.data)
    plain = torch.cat(seen[unit.reference_input_of])
    with captured_inputs(quantized, [unit.input_of]) as seen:
        run_in_batches(part, streams[1], inputs.data)
    noisy = torch.cat(seen[unit.input_of])
    extra: tuple[Tensor | None, ...] = ()
    live = inputs.live
    if isinstance(unit.module, Block):
        extra = (clip.text.mask(noisy.shape[1], noisy.device) if part.name.startswith("text.") else None,)
    with torch.no_grad():
        target = torch.cat([unit.reference(x, *extra) for x in plain.split(32)])
    return Samples(noisy, plain if mixed else None, target, live if noisy.ndim == 3 else None, extra)


def _reconstruct(
    unit: Unit, samples: Samples, inputs: Inputs, quantized: QuantizedClip, config: Reconstruct, tower: str, seed: int,
    progress: _Progress,
) -> UnitReport:  # fmt: skip
    """Learn one unit, or recall it, and put the better of learned and nearest rounding into the model."""
    fitted, held = samples.rows(slice(0, inputs.num_fitted)), samples.rows(slice(inputs.num_fitted, None))
    batch = config.batch
    if not unit.whole_samples and config.error == "channels":
        num_samples = len(fitted)
        fitted, held = _tokens(fitted), _tokens(held)
        batch = max(1, round(config.batch * len(fitted) / num_samples))
    nearest_error = unit_error(unit, held)
    nearest = _current(unit)
    piece = progress.work.recall(unit.name)
    if piece is not None:
        learned = _from_arrays(piece, unit)
    else:
        rate = config.image_scale_learning_rate if tower == "image" else config.text_scale_learning_rate
        pair_safe = frozenset(site for site in unit.weights if quantized.scheme.weights[site].pair_safe)
        generator = torch.Generator().manual_seed(derive_seed(seed, "reconstruct", unit.name))
        learned = learn(
            unit, fitted, batch, config,
            scale_learning_rate=rate, pair_safe=pair_safe, generator=generator, report=progress,
        )  # fmt: skip
        progress.work.keep(unit.name, _to_arrays(learned))
    _apply(unit, learned)
    learned_error = unit_error(unit, held)
    changed = sum(float((learned.codes[s] != nearest.codes[s]).sum()) for s in unit.weights)
    total = sum(learned.codes[s].numel() for s in unit.weights)
    kept = learned_error <= nearest_error or not config.gate
    if not kept:
        _apply(unit, nearest)
    bits = min(unit.grid_weight(site).grid.num_bits for site in unit.weights)
    return UnitReport(unit.name, bits, nearest_error, learned_error, changed / total, kept)


def _tokens(samples: Samples) -> Samples:
    """Let samples fall apart into their live tokens."""

    def tokens(x: Tensor) -> Tensor:
        return keep_live(x, samples.live).reshape(-1, x.shape[-1])  # [token, channel]

    plain = None if samples.float is None else tokens(samples.float)
    return Samples(tokens(samples.quantized), plain, tokens(samples.target), None)


def _current(unit: Unit) -> Learned:
    codes = {site: unit.grid_weight(site).codes() for site in unit.weights}
    return Learned(codes, {path: unit.quantizer(path).scale.clone() for path in unit.quantizers})


def _apply(unit: Unit, learned: Learned) -> None:
    for site, codes in learned.codes.items():
        unit.grid_weight(site).set_codes(codes)
    for path, scale in learned.scales.items():
        unit.quantizer(path).scale.copy_(scale)


def _to_arrays(learned: Learned) -> Arrays:
    arrays = {f"codes/{site}": codes.to(torch.int16).cpu().numpy() for site, codes in learned.codes.items()}
    scales = {f"scale/{path}": np.atleast_1d(s.cpu().numpy()) for path, s in learned.scales.items()}
    return {**arrays, **scales}


def _from_arrays(arrays: Arrays, unit: Unit) -> Learned:
    codes, scales = {}, {}
    for site in unit.weights:
        weight = unit.grid_weight(site).values
        codes[site] = torch.from_numpy(arrays[f"codes/{site}"]).to(weight)
    for path in unit.quantizers:
        scale = unit.quantizer(path).scale
        scales[path] = torch.from_numpy(arrays[f"scale/{path}"]).to(scale).reshape(scale.shape)
    return Learned(codes, scales)


def summarize(reports: Iterable[UnitReport]) -> dict[str, Any]:
    """Means over units, for all and for each number of weight bits, as JSON.

    `error_ratio` is the mean over units of learned / nearest held-out error, learned ones as they were kept.
    """
    reports = list(reports)
    by_bits: dict[str, Any] = {}
    for bits in sorted({r.weight_bits for r in reports}):
        chosen = [r for r in reports if r.weight_bits == bits]
        ratios = [r.learned_error / r.nearest_error if r.kept and r.nearest_error > 0 else 1.0 for r in chosen]
        by_bits[str(bits)] = {
            "units": len(chosen),
            "error_ratio": float(np.mean(ratios)),
            "codes_changed": float(np.mean([r.codes_changed for r in chosen])),
            "rejected": sum(not r.kept for r in chosen),
        }
    return {"by_weight_bits": by_bits, "units": [asdict(r) for r in reports]}

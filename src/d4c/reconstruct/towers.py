"""Walk both towers, float and quantized stream side by side, and reconstruct unit after unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d4c.artifact.work import Work
from d4c.images import ImageSet
from d4c.memory import return_freed_memory
from d4c.models import Clip, QuantizedClip
from d4c.models.attention import Block
from d4c.models.parts import (
    Part,
    TowerName,
    input_to,
    keep_live,
    padded_or_live,
    pooled_token,
    run_in_batches,
    tower_parts,
)
from d4c.models.sharing import sharing_copy
from d4c.quantizers.functional import quantize
from d4c.quantizers.layers import UniformQuantizer
from d4c.ranks import ALONE, Ranks
from d4c.recipes import Reconstruct
from d4c.recipes.seeds import derive_seed
from d4c.reconstruct.learn import Samples, learn, unit_error
from d4c.reconstruct.learned import Learned
from d4c.reconstruct.solve import Batch, Split, solve_unit
from d4c.reconstruct.units import Unit, UnitKind, units_of

OTHER_TOKENS = 0.1  # weight, next to the pooled token's 1, of all others of a sample together


@dataclass(frozen=True)
class UnitReport:
    """What reconstruction did to one unit.

    Args:
        weight_bits: of its layers, the fewest.
        nearest_error, learned_error: mean squared output error on held-out samples, round-to-nearest against learned.
        codes_changed: share of its codes that differ from round-to-nearest.
        kept: whether the learned rounding stays; where it is worse on held-out samples than what it started from, it
            goes, if the recipe says so.
        ridge, step: of a closed form, how strongly its target is held at the float weight, and how far it went.
    """

    name: str
    weight_bits: int
    nearest_error: float
    learned_error: float
    codes_changed: float
    kept: bool
    ridge: float | None = None
    step: float | None = None


@dataclass(frozen=True)
class Inputs:
    """One tower's own inputs: calibration samples, counted first, then held-out ones.

    Args:
        fitted, held: pixels, or trimmed ids; live: tokens that count, of both, or None.
    """

    fitted: Tensor
    held: Tensor
    live: Tensor | None

    def __len__(self) -> int:
        return len(self.fitted) + len(self.held)

    def rows(self, rows: slice) -> Tensor:
        """Some samples, all of one kind."""
        num = len(self.fitted)
        return self.fitted[rows] if rows.stop <= num else self.held[rows.start - num : rows.stop - num]


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
    ranks: Ranks = ALONE,
) -> tuple[QuantizedClip, list[UnitReport]]:
    """Choose the rounding of every unit, in the order of the forward pass, on inputs that are already quantized.

    Args:
        clip: the float model `quantized` was wrapped from; neither is changed.
        ids: calibration texts [text, token]; held_images and held_ids judge and are never fitted to.
        padding: whether what follows the end of a text counts too.
        towers: which to reconstruct; neither tower's result depends on the other.
        work: remembers finished units.
        ranks: processes that share the closed form's work; learning is not shared, and every one does all of it.

    Returns:
        a new quantized model and a report for each unit.
    """
    work = work or Work()
    started = config.method == "adaround" and config.start == "closed_form"
    nearest_model = (
        quantized if started else None
    )  # not held on to where it is not needed: it is as large as the result
    if started:
        first = dataclasses.replace(config, method="closed_form")
        quantized, _ = run(
            clip, quantized, images, ids, held_images, held_ids, first,
            seed=seed, padding=padding, towers=towers, work=work.within("start"), ranks=ranks,
        )  # fmt: skip
    quantized = sharing_copy(quantized)
    device = clip.logit_scale.device
    texts, live = padded_or_live(clip, torch.cat([ids, held_ids]).to(device), padding=padding)
    given = {
        "image": Inputs(images.pixels.to(device), held_images.pixels.to(device), None),
        "text": Inputs(texts[: len(ids)], texts[len(ids) :], live),
    }
    closed = config.method == "closed_form"
    kind: UnitKind = "layer" if closed else config.unit
    total = sum(len(units_of(p, quantized, clip, kind)) for t in towers for p in tower_parts(quantized, t))
    reports: list[UnitReport] = []
    for tower in towers:
        for place in _places(clip, quantized, nearest_model, tower, given[tower], kind, ranks if closed else ALONE):
            return_freed_memory()  # of the unit before, half a gigabyte for a ViT-B/32
            if closed:
                reports.append(_solve(place, config, seed, work, ranks))
                work.report("reconstruct", len(reports), total)
            else:
                reports.append(_learn(place, config, seed, _Progress(work, len(reports), total, config.iterations)))
    return quantized, reports


@dataclass(frozen=True)
class Place:
    """A unit, where it stands in both models, and what flows there.

    Args:
        nearest: the same unit rounded to nearest, if the model does not start like that; else the unit itself.
        part, float_part: the part of the quantized and of the float tower that the unit is in.
        plain, noisy: what goes into these parts, float and quantized, by number of the batch in `split`.
        last: whether the part is the last block or half of it, of which only the pooled token counts in ViTs and texts.
    """

    unit: Unit
    nearest: Unit
    part: Part
    float_part: Part
    quantized: QuantizedClip
    clip: Clip
    plain: Mapping[int, Tensor]
    noisy: Mapping[int, Tensor]
    inputs: Inputs
    split: Split
    tower: TowerName
    last: bool

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        """What a batch brings to the unit in the float and in the quantized stream."""
        data, unit = self.inputs.rows(self.split.batches[number]), self.unit
        return (
            input_to(self.clip, unit.reference_input_of, self.float_part, self.plain[number], data),
            input_to(self.quantized, unit.input_of, self.part, self.noisy[number], data),
        )

    def batch(self, number: int) -> Batch:
        """The same, with how much its tokens count."""
        x, noisy = self.read(number)
        weight = self.token_weight(self.split.batches[number], x.shape[1]) if x.ndim == 3 else None
        return Batch(x, noisy, weight)

    def token_weight(self, rows: slice, tokens: int) -> Tensor | None:
        """How much each token counts, [sample, token]; None where all count alike.

        Behind the last block's keys and values only the pooled token reaches the embedding; the others are kept at a
        small weight because the pooled ones alone are few.
        """
        live = None if self.inputs.live is None else self.inputs.live[rows].float()
        reads_all = any(site.endswith((".attention.k", ".attention.v")) for site in self.unit.weights)
        only_pooled = self.last and not reads_all
        pooled = pooled_token(self.clip, self.tower, self.inputs.rows(rows)) if only_pooled else None
        if pooled is None:
            return live
        weight = torch.ones(len(pooled), tokens, device=pooled.device) if live is None else live.clone()
        weight *= OTHER_TOKENS / weight.sum(dim=1, keepdim=True)
        return weight.scatter_(1, pooled[:, None], 1.0)


def _places(
    clip: Clip, quantized: QuantizedClip, nearest_model: QuantizedClip | None, tower: TowerName, inputs: Inputs,
    kind: UnitKind, ranks: Ranks,
) -> Iterator[Place]:  # fmt: skip
    """Every unit of a tower in order, streams advanced part by part through what the units before have become.

    Halves of a block where units are not larger: less to run again in front of a unit.
    """
    split = Split.of(len(inputs.fitted), len(inputs))
    plain = {number: inputs.rows(split.batches[number]) for number in split.mine(ranks)}
    noisy = dict(plain)
    halves, last_block = kind != "block", tower_parts(quantized, tower)[-2].name
    parts = tower_parts(quantized, tower, halves=halves)
    for part, float_part in zip(parts, tower_parts(clip, tower, halves=halves), strict=True):
        units = units_of(part, quantized, clip, kind)
        untouched = units if nearest_model is None else units_of(part, nearest_model, clip, kind)
        for unit, nearest in zip(units, untouched, strict=True):
            last = part.name.startswith(last_block)
            yield Place(unit, nearest, part, float_part, quantized, clip, plain, noisy, inputs, split, tower, last)
        for number in plain:
            data = inputs.rows(split.batches[number])
            plain[number] = run_in_batches(float_part, plain[number], data)
            noisy[number] = run_in_batches(part, noisy[number], data)


@dataclass(frozen=True)
class _Progress:
    work: Work
    units_done: int
    units: int
    iterations: int

    def __call__(self, step: int) -> None:
        self.work.report("reconstruct", self.units_done * self.iterations + step, self.units * self.iterations)


def _solve(place: Place, config: Reconstruct, seed: int, work: Work, ranks: Ranks) -> UnitReport:
    """Solve one unit in closed form, or recall it, and put the better of it and nearest rounding into the model."""
    unit = place.unit
    piece = ranks.agree(lambda: work.recall(unit.name))
    if piece is not None:
        learned = Learned.from_arrays(piece, unit)
        ridge, step, nearest_error, error, changed = (float(x) for x in piece["report"])
    else:
        source = place.quantized.get_submodule(place.clip.input_sites()[next(iter(unit.weights))])
        solution = solve_unit(
            unit, place.split, place.batch, config.refits,
            input_scale=source.scale if isinstance(source, UniformQuantizer) else None,
            seed=derive_seed(seed, "reconstruct", unit.name), ranks=ranks,
        )  # fmt: skip
        learned, ridge, step = solution.learned, solution.ridge, solution.step
        nearest_error, error, changed = solution.nearest_error, solution.error, solution.codes_changed
        if ranks.first:
            report = np.array([ridge, step, nearest_error, error, changed])
            work.keep(unit.name, {**learned.to_arrays(), "report": report})
    kept = error <= nearest_error or not config.gate
    if kept:
        learned.apply(unit)
    return UnitReport(unit.name, _fewest_bits(unit), nearest_error, error, changed, kept, ridge, step)


def _learn(place: Place, config: Reconstruct, seed: int, progress: _Progress) -> UnitReport:
    """Learn one unit, or recall it, and put the better of that and what it started from into the model."""
    unit = place.unit
    samples = _samples(place, config.keep_quantized < 1)
    num_fitted = len(place.inputs.fitted)
    fitted, held = samples.rows(slice(0, num_fitted)), samples.rows(slice(num_fitted, None))
    batch = config.batch
    if not unit.whole_samples and config.error == "channels":
        num_samples = len(fitted)
        fitted, held = _tokens(fitted), _tokens(held)
        batch = max(1, round(config.batch * len(fitted) / num_samples))
    start, start_error = Learned.current(unit), unit_error(unit, held)
    nearest_error = start_error
    if config.start != "nearest":
        Learned.current(place.nearest).apply(unit)
        nearest_error = unit_error(unit, held)
        start.apply(unit)
    piece = progress.work.recall(unit.name)
    if piece is not None:
        learned = Learned.from_arrays(piece, unit)
    else:
        rate = config.image_scale_learning_rate if place.tower == "image" else config.text_scale_learning_rate
        generator = torch.Generator().manual_seed(derive_seed(seed, "reconstruct", unit.name))
        learned = learn(
            unit, fitted, batch, config, scale_learning_rate=rate, generator=generator, report=progress
        )  # fmt: skip
        progress.work.keep(unit.name, learned.to_arrays())
    learned.apply(unit)
    learned_error = unit_error(unit, held)
    changed = _share_changed(unit)
    kept = learned_error <= start_error or not config.gate
    if not kept:
        start.apply(unit)
    return UnitReport(unit.name, _fewest_bits(unit), nearest_error, learned_error, changed, kept)


def _share_changed(unit: Unit) -> float:
    """Share of a unit's codes that are not the float weight's nearest on the same grid."""
    changed = total = 0
    for site in unit.weights:
        affine, codes = unit.grid_weight(site).affine, unit.grid_weight(site).codes()
        plain = quantize(unit.float_weight(site), affine.scale, affine.zero_point, affine.grid)
        changed, total = changed + int((plain != codes).sum()), total + codes.numel()
    return changed / total


def _fewest_bits(unit: Unit) -> int:
    return min(unit.grid_weight(site).grid.num_bits for site in unit.weights)


def _samples(place: Place, mixed: bool) -> Samples:
    """Run the part on both streams and keep what goes into the unit and what should come out."""
    unit = place.unit
    read = [place.read(number) for number in range(len(place.split.batches))]
    plain, noisy = (torch.cat(parts) for parts in zip(*read, strict=True))
    extra: tuple[Tensor | None, ...] = ()
    if isinstance(unit.module, Block):
        extra = (place.clip.text.mask(noisy.shape[1], noisy.device) if place.tower == "text" else None,)
    with torch.no_grad():
        target = torch.cat([unit.reference(x, *extra) for x in plain.split(32)])
    return Samples(noisy, plain if mixed else None, target, place.inputs.live if noisy.ndim == 3 else None, extra)


def _tokens(samples: Samples) -> Samples:
    """Let samples fall apart into their live tokens."""

    def tokens(x: Tensor) -> Tensor:
        return keep_live(x, samples.live).reshape(-1, x.shape[-1])  # [token, channel]

    plain = None if samples.float is None else tokens(samples.float)
    return Samples(tokens(samples.quantized), plain, tokens(samples.target), None)


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

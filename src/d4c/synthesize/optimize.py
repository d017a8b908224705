"""Make an image set: draw the start, choose prompts and boxes, optimise micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from d4c.artifact.work import Work
from d4c.errors import CalibrationError
from d4c.images import ImageSet, procedural_pixels, procedural_set
from d4c.models import Clip
from d4c.ranks import ALONE, Ranks
from d4c.recipes import Synthesize
from d4c.recipes.seeds import derive_seed
from d4c.synthesize.canvas import Canvas, Pixels, Pyramid
from d4c.synthesize.loss import SynthesisLoss, round_of
from d4c.synthesize.views import sample_boxes

SECONDS_BETWEEN_CHECKPOINTS = 60


def run(
    clip: Clip,
    prompts: Sequence[str],
    config: Synthesize,
    *,
    seed: int = 0,
    work: Work | None = None,
    ranks: Ranks = ALONE,
) -> ImageSet:
    """Make calibration images.

    Args:
        clip: the float model; it is not changed.
        prompts: texts that images are drawn towards; unused by procedures.
        work: remembers finished micro-batches; ranks: processes that share them, unless one optimiser moves all images.

    Returns:
        `config.images` images on the CPU.

    Raises:
        RecipeError: an objective needs what the model does not have.
        CalibrationError: pixels became NaN or infinite.
    """
    work = work or Work()
    if config.method != "d4c":
        return procedural(config.method, config.images, clip, seed, valid=config.valid_pixels)
    device = clip.logit_scale.device
    start = procedural_pixels(
        config.start,
        config.images,
        clip.preprocess,
        derive_seed(seed, "synthesize", "start"),
        valid=config.valid_pixels,
    )
    draw = torch.Generator().manual_seed(derive_seed(seed, "synthesize", "targets"))
    targets = torch.randint(len(prompts), (config.images,), generator=draw)
    boxes = sample_boxes(config.images, clip.preprocess.size, draw)
    loss = SynthesisLoss(clip, prompts, targets, boxes, config, seed)
    make = _together if config.momentum_drift else _one_by_one
    pixels = make(loss, start.to(device), work, ranks).cpu()
    if not bool(pixels.isfinite().all()):
        raise CalibrationError("synthesis: pixels are not finite; lower synthesize.learning_rate")
    settings = dataclasses.asdict(config)
    return ImageSet(pixels, targets, boxes, tuple(prompts), "d4c", seed, clip.fingerprint, settings)


def procedural(method: str, num: int, clip: Clip, seed: int, *, valid: bool) -> ImageSet:
    """A set that needs no steps; `valid` as in `procedural_pixels`."""
    return procedural_set(method, num, clip.preprocess, derive_seed(seed, "synthesize", "start"), valid=valid)


def _slices(config: Synthesize) -> Iterator[slice]:
    for start in range(0, config.images, config.batch):
        yield slice(start, min(start + config.batch, config.images))


def _learning_rate(config: Synthesize, step: int) -> float:
    """Rising linearly while a round warms up, then constant or along a half cosine to its end."""
    per_round = math.ceil(config.steps / config.rounds)
    step, warm = step - per_round * round_of(config, step), round(config.warm_up * per_round)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (per_round - warm)))


def _adam(canvas: Canvas, config: Synthesize) -> torch.optim.Adam:
    return torch.optim.Adam(canvas.parameters, lr=config.learning_rate, betas=(config.beta1, config.beta2))


def _canvas(loss: SynthesisLoss, start: Tensor) -> Canvas:
    preprocess, config = loss.clip.preprocess, loss.config
    if config.parametrization == "pyramid":
        return Pyramid(start, preprocess)
    return Pixels(start, preprocess, valid=config.valid_pixels)


def _step(
    loss: SynthesisLoss, canvas: Canvas, rows: slice, step: int, optimizer: torch.optim.Adam, drift: bool
) -> None:
    """One optimiser step on the loss of some rows; with `drift`, the canvas is the whole set and all of it moves."""
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(loss.config, step)
    optimizer.zero_grad(set_to_none=False)
    x = canvas.render()
    loss(x[rows] if drift else x, rows, step).backward()
    optimizer.step()
    canvas.settle()


def _one_by_one(loss: SynthesisLoss, start: Tensor, work: Work, ranks: Ranks) -> Tensor:
    """Every micro-batch from start to end with an optimiser of its own."""
    config, slices = loss.config, list(_slices(loss.config))
    mine: dict[int, list[Tensor]] = {}
    for i in ranks.share(len(slices)):
        rows = slices[i]
        kept = work.recall(f"batch-{i}")
        if kept is not None:
            mine[i] = [torch.from_numpy(kept["pixels"]).to(start.device)]
            continue
        canvas = _canvas(loss, start[rows])
        optimizer = _adam(canvas, config)
        for step in range(config.steps):
            if step and round_of(config, step) != round_of(config, step - 1):
                optimizer = _adam(canvas, config)
            _step(loss, canvas, rows, step, optimizer, drift=False)
            num_done = rows.start * config.steps + (step + 1) * (rows.stop - rows.start)
            work.report("synthesize", num_done, config.images * config.steps)
        mine[i] = [canvas.render().detach()]
        work.keep(f"batch-{i}", {"pixels": mine[i][0].cpu().numpy()})
    return torch.cat([pixels for (pixels,) in ranks.collect(mine, len(slices))])


def _together(loss: SynthesisLoss, start: Tensor, work: Work, ranks: Ranks) -> Tensor:
    """All images under one optimiser, by the first process."""
    mine = {0: [_drift(loss, start, work)]} if ranks.first else {}
    ((pixels,),) = ranks.collect(mine, 1)
    return pixels


def _drift(loss: SynthesisLoss, start: Tensor, work: Work) -> Tensor:
    """One optimiser over all images, stepping after each micro-batch, so that momentum moves the others too.

    A sweep over M micro-batches thus moves every pixel by about sqrt(M) learning rates. The optimiser's state is
    kept once a minute.
    """
    config = loss.config
    canvas = Pixels(start, loss.clip.preprocess, valid=config.valid_pixels)
    x = canvas.x
    optimizer = _adam(canvas, config)
    first, kept = 0, work.recall("state")
    if kept is not None:
        first = int(kept["sweep"][0])
        x.data.copy_(torch.from_numpy(kept["pixels"]))
        moments = {k: torch.from_numpy(kept[k]).to(x.device) for k in ("exp_avg", "exp_avg_sq")}
        optimizer.state[x] = {"step": torch.from_numpy(kept["step"]).reshape(()), **moments}
    kept_at = time.monotonic()
    for sweep in range(first, config.steps):
        for rows in _slices(config):
            _step(loss, canvas, rows, sweep, optimizer, drift=True)
        work.report("synthesize", (sweep + 1) * config.images, config.images * config.steps)
        if time.monotonic() - kept_at > SECONDS_BETWEEN_CHECKPOINTS or sweep + 1 == config.steps:
            state = {k: v.cpu().numpy().reshape(v.shape or (1,)) for k, v in optimizer.state[x].items()}
            pixels = x.detach().cpu().numpy()
            work.keep("state", {"pixels": pixels, "sweep": torch.tensor([sweep + 1]).numpy(), **state})
            kept_at = time.monotonic()
    return x.detach()

"""Learn the rounding and the activation scales of one unit (AdaRound with LSQ, arXiv:1902.08153)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from d4c.errors import CalibrationError
from d4c.quantizers.functional import quantize
from d4c.quantizers.grids import AffineGrid
from d4c.quantizers.layers import UniformQuantizer
from d4c.quantizers.pair_safe import clamp_pairs
from d4c.recipes import Reconstruct
from d4c.reconstruct.adaround import beta_at, hard_codes, initial_alpha, rounding_penalty, soft_weight, squared_error
from d4c.reconstruct.learned import Learned
from d4c.reconstruct.units import Unit, channel_dim

ALMOST_HALF = 0.49  # of a step: close to the next code, not yet beyond
LEAST_SCALE = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Samples:
    """What a unit is fitted to.

    Args:
        quantized: the unit's input in the quantized stream, [sample, ..]; float: the same in the float stream, or None
            where it is never mixed in.
        target: what the float unit makes of its float input, [sample, ..].
        live: which tokens count, [sample, token], or None where all do.
        extra: further arguments of the unit's forward, the same for all samples.
    """

    quantized: Tensor
    float: Tensor | None
    target: Tensor
    live: Tensor | None
    extra: tuple[Tensor | None, ...] = ()

    def __len__(self) -> int:
        return len(self.quantized)

    def rows(self, index: Tensor | slice) -> Samples:
        """Some of the samples."""

        def some(x: Tensor) -> Tensor:
            return x[index] if isinstance(index, slice) else x.index_select(0, index)  # half of [index]'s time

        plain = None if self.float is None else some(self.float)
        live = None if self.live is None else some(self.live)
        return Samples(some(self.quantized), plain, some(self.target), live, self.extra)


class Rounding:
    """One weight's rounding variables."""

    def __init__(self, weight: Tensor, affine: AffineGrid) -> None:
        self.weight, self.affine = weight, affine
        self.alpha = initial_alpha(weight, affine).requires_grad_()

    def soft(self) -> Tensor:
        """The weight with soft rounding."""
        return soft_weight(self.weight, self.alpha, self.affine)

    def codes(self, pair_safe: bool) -> Tensor:
        """The codes decided on."""
        codes = hard_codes(self.weight, self.alpha.detach(), self.affine)
        return clamp_pairs(codes) if pair_safe else codes


class DroppingQuantizer(UniformQuantizer):
    """Passes each element unquantized with probability 1 - keep (QDrop, arXiv:2203.05740)."""

    def __init__(self, affine: AffineGrid, keep: float, generator: torch.Generator) -> None:
        super().__init__(affine)
        self.keep, self.generator = keep, generator

    def forward(self, x: Tensor) -> Tensor:
        return _mix(super().forward(x), x, self.keep, self.generator)


def learn(
    unit: Unit,
    samples: Samples,
    batch: int,
    config: Reconstruct,
    *,
    scale_learning_rate: float,
    generator: torch.Generator,
    report: Callable[[int], None],
) -> Learned:
    """Fit rounding and scales to the float unit's outputs, from the unit as it stands; the unit is not changed.

    Args:
        batch: samples a step, drawn with replacement.
        generator: on the CPU, for the choice of samples and for dropping.
        report: called with the number of iterations done.

    Raises:
        CalibrationError: the error is not finite.
    """
    roundings = {site: Rounding(starting_weight(unit, site), unit.grid_weight(site).affine) for site in unit.weights}
    scales = {path: unit.quantizer(path).scale.clone().requires_grad_() for path in unit.quantizers}
    module = _with_dropping(unit, config.keep_quantized, generator)
    alphas = [rounding.alpha for rounding in roundings.values()]
    optimizers = [torch.optim.Adam(alphas, lr=config.rounding_learning_rate)]
    if scales:
        optimizers.append(torch.optim.Adam(scales.values(), lr=scale_learning_rate))
    for step in range(1, config.iterations + 1):
        optimizers[-1].param_groups[0]["lr"] = (
            _annealed(config, step, scale_learning_rate) if scales else config.rounding_learning_rate
        )
        index = torch.randint(len(samples), (batch,), generator=generator)
        part = samples.rows(index.to(samples.quantized.device, non_blocking=True))
        x = _mix(part.quantized, part.float, config.keep_quantized, generator)
        changed = {f"{unit.weights[site]}.values": rounding.soft() for site, rounding in roundings.items()}
        changed |= {
            f"{path}.scale": lsq_scale(s, x.numel(), unit.quantizer(path).grid.qmax) for path, s in scales.items()
        }
        y = functional_call(module, changed, (x, *part.extra))
        loss = _error(y, part) if config.error == "channels" else error_over_dim1(y, part.target)
        beta = beta_at(step, config.iterations, config.warm_up, config.beta_start, config.beta_end)
        if beta is not None:
            loss = loss + config.rounding_weight * torch.stack([rounding_penalty(a, beta) for a in alphas]).sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        report(step)
    if not bool(loss.isfinite()):
        raise CalibrationError(f"{unit.name}: reconstruction diverged; are the images sound?")
    return Learned(
        {site: rounding.codes(site in unit.pair_safe) for site, rounding in roundings.items()},
        {path: scale.detach().abs().clamp(min=LEAST_SCALE) for path, scale in scales.items()},
    )


def starting_weight(unit: Unit, site: str) -> Tensor:
    """The weight whose rounding is learned: the float weight, moved to where the codes as they stand are its nearest.

    Where they are that already, which is everywhere unless a closed form chose them, it is the float weight itself.
    """
    weight, held = unit.float_weight(site), unit.grid_weight(site)
    codes, affine = held.codes(), held.affine
    at = codes - affine.zero_point
    moved = (weight / affine.scale).clamp(at - ALMOST_HALF, at + ALMOST_HALF) * affine.scale
    return torch.where(codes == quantize(weight, affine.scale, affine.zero_point, affine.grid), weight, moved)


@torch.no_grad()
def unit_error(unit: Unit, samples: Samples, batch: int = 256) -> float:
    """Mean squared error of the unit's output, summed over channels, over live tokens; as it stands now."""
    total, count = 0.0, 0
    for start in range(0, len(samples), batch):
        part = samples.rows(slice(start, start + batch))
        weight = len(part) if part.live is None else int(part.live.sum())
        total += float(_error(unit.module(part.quantized, *part.extra), part)) * weight
        count += weight
    return total / count


def error_over_dim1(y: Tensor, target: Tensor) -> Tensor:
    """Squared error summed over dimension 1 and averaged over the others, as the paper's authors have it.

    Dimension 1 is channels in feature maps and tokens elsewhere; [sample, channel] is one token of each sample.
    """
    if y.ndim == 2:
        y, target = y[:, None], target[:, None]  # [sample, token, channel]
    return squared_error(y, target, 1)


def lsq_scale(scale: Tensor, num_values: int, qmax: int) -> Tensor:
    """A positive scale whose gradient is divided by sqrt(values x qmax), LSQ section 2.2."""
    positive = scale.abs().clamp(min=LEAST_SCALE)
    g = 1 / math.sqrt(num_values / scale.numel() * qmax)
    return positive * g + (positive * (1 - g)).detach()


def _annealed(config: Reconstruct, step: int, learning_rate: float) -> float:
    return learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / config.iterations))


def _error(y: Tensor, samples: Samples) -> Tensor:
    if samples.live is None:
        return squared_error(y, samples.target, channel_dim(y))
    live = samples.live.to(y.dtype)  # multiplied, since to pick them a GPU would have to be waited for
    return ((y - samples.target).square().sum(dim=-1) * live).sum() / live.sum()


def _mix(quantized: Tensor, plain: Tensor | None, keep: float, generator: torch.Generator) -> Tensor:
    if keep >= 1:
        return quantized
    assert plain is not None
    return torch.where(random_mask(plain.shape, keep, generator).to(plain.device), quantized, plain)


def random_mask(shape: Sequence[int], share: float, generator: torch.Generator) -> Tensor:
    """True with a probability of `share`, to 16 bits: four values of a draw of 64, a third of torch.rand's time."""
    num_values = math.prod(shape)
    draws = torch.randint(-(2**63), 2**63 - 1, (-(-num_values // 4),), generator=generator)
    bound = min(round(share * 2**16) - 2**15, 2**15 - 1)
    return (draws.view(torch.int16)[:num_values] < bound).reshape(shape)


def _with_dropping(unit: Unit, keep: float, generator: torch.Generator) -> nn.Module:
    if keep >= 1:
        return unit.module
    module = copy.deepcopy(unit.module)
    for path in unit.quantizers:
        parent, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(parent), leaf, DroppingQuantizer(unit.quantizer(path).affine, keep, generator))
    return module

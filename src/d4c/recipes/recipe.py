"""Recipes: everything that decides how a model is quantized, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from d4c.errors import RecipeError

FLOAT_BITS = 32
PAPER_ITERATIONS, PAPER_LEARNING_RATE, MAX_LEARNING_RATE = 20_000, 1e-3, 2e-2

ImageMethod = Literal["d4c", "noise", "one_over_f", "dead_leaves"]
Start = Literal["noise", "one_over_f", "dead_leaves"]


@dataclass(frozen=True, slots=True)
class Synthesize:
    """How calibration images are made.

    Args:
        method: "d4c" optimises them with the model; the others are procedural and take no steps.
        images: how many; batch: how many share one softmax (and, with `momentum_drift`, one sweep).
        steps: optimiser steps of each image.
        learning_rate: of Adam, in normalised pixels a step; schedule: its course.
        start: what the pixels of "d4c" start from.
        temperature: τ of the contrast between image and prompts.
        structural_contrast: crop against background (SCG); perturbation: flips, shifts, colour, blur, erasing (PAE).
        total_variation: weight of the smoothness term.
        valid_pixels: clamp to what a picture can hold after every step.
        momentum_drift: one optimiser over all images, as the authors have it (Q1 of the method's doubtful points).
        prompts: "model" takes the model's own bank where it has one, "own" and "paper" name shipped banks.
    """

    method: ImageMethod = "d4c"
    images: int = 128
    steps: int = 60
    batch: int = 16
    learning_rate: float = 0.05
    schedule: Literal["constant", "cosine"] = "cosine"
    start: Start = "one_over_f"
    temperature: float = 0.1
    structural_contrast: bool = True
    perturbation: bool = True
    total_variation: float = 0.1
    valid_pixels: bool = True
    momentum_drift: bool = False
    prompts: Literal["model", "own", "paper"] = "model"

    def __post_init__(self) -> None:
        _need(self.images >= 1 and self.batch >= 1 and self.steps >= 0, "synthesize", "images, batch >= 1, steps >= 0")
        _need(self.learning_rate > 0 and self.temperature > 0, "synthesize", "learning_rate and temperature > 0")


@dataclass(frozen=True, slots=True)
class Calibrate:
    """How ranges are found.

    Args:
        texts: how many prompts calibrate the text tower; templates: "generic" takes our own fixed ones.
        range: "lp" searches the least L_2.4 error, "minmax" covers every value.
        layernorm_fold: exponent of the per-channel range that is moved from a LayerNorm into its readers; 0 moves none.
    """

    texts: int = 512
    templates: Literal["generic"] = "generic"
    range: Literal["lp", "minmax"] = "lp"
    layernorm_fold: float = 0.0

    def __post_init__(self) -> None:
        _need(self.texts >= 1, "calibrate", "texts >= 1")
        _need(0 <= self.layernorm_fold <= 1, "calibrate", "layernorm_fold from 0 to 1")


@dataclass(frozen=True, slots=True)
class Reconstruct:
    """How rounding is learned.

    Args:
        unit: "layer" learns the layers that share an input together, "block" whole residual blocks, "auto" takes
            blocks in ResNets and layers elsewhere, as the paper does.
        iterations: steps of each unit; batch: samples of each step.
        rounding_weight: weight of the term that drives soft rounding to 0 or 1; warm_up: fraction of the steps
            without it; beta_start, beta_end: its exponent's course.
        image_scale_learning_rate, text_scale_learning_rate: of the activation scales.
        keep_quantized: probability that an input value is the quantized one (QDrop; 1 turns dropping off).
    """

    method: Literal["none", "adaround"] = "adaround"
    unit: Literal["layer", "block", "auto"] = "auto"
    iterations: int = 1000
    batch: int = 32
    rounding_weight: float = 0.01
    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    image_scale_learning_rate: float = 4e-5
    text_scale_learning_rate: float = 4e-6
    keep_quantized: float = 1.0

    def __post_init__(self) -> None:
        _need(self.iterations >= 1 and self.batch >= 1, "reconstruct", "iterations and batch >= 1")
        _need(
            0 <= self.warm_up < 1 and 0 < self.keep_quantized <= 1,
            "reconstruct",
            "0 <= warm_up < 1, 0 < keep_quantized <= 1",
        )

    @property
    def rounding_learning_rate(self) -> float:
        """The paper's 1e-3 at 20,000 iterations; k times fewer iterations learn k times faster, at most 2e-2.

        Short runs at 1e-3 are round-to-nearest in disguise.
        """
        return min(MAX_LEARNING_RATE, PAPER_LEARNING_RATE * max(1.0, PAPER_ITERATIONS / self.iterations))


@dataclass(frozen=True, slots=True)
class Rule:
    """Bits for every site whose name matches; later rules win over earlier ones, key by key.

    Args:
        match: shell pattern on site names (`text.blocks.*.mlp.*`).
        weight_bits, activation_bits: 2 to 8, 32 for float, None to leave as it is.
        activation_granularity: what shares an activation scale: the "tensor", each last-axis "channel" or each "token".
    """

    match: str
    weight_bits: int | None = None
    activation_bits: int | None = None
    activation_granularity: Literal["tensor", "channel", "token"] | None = None

    def __post_init__(self) -> None:
        for key in ("weight_bits", "activation_bits"):
            bits = getattr(self, key)
            _need(
                bits is None or bits == FLOAT_BITS or 2 <= bits <= 8,
                "rule",
                f"{key} from 2 to 8, or 32 for float; got {bits}",
            )


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to quantize a CLIP.

    Args:
        deployable: whether integer kernels compute exactly what the simulation does; what they cannot do is refused.
        placement: "tensors" quantizes each tensor once for all its readers, "inputs" each layer's input by itself.
        attention: the factors of attention's two products: "float", "int8", or by the "rules".
        weight_symmetric, activation_symmetric: grids with zero point 0, or with a free one.
    """

    name: str
    deployable: bool = False
    placement: Literal["tensors", "inputs"] = "tensors"
    attention: Literal["float", "int8", "rules"] = "float"
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    synthesize: Synthesize = field(default_factory=Synthesize)
    calibrate: Calibrate = field(default_factory=Calibrate)
    reconstruct: Reconstruct = field(default_factory=Reconstruct)
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if self.deployable:
            self._check_deployable()

    def _check_deployable(self) -> None:
        reasons = {
            "placement = 'inputs'": self.placement != "tensors" and "a tensor has one scale for all its readers",
            "attention = 'rules'": self.attention == "rules" and "the products of attention are float or 8 bits",
            "weight_symmetric = false": not self.weight_symmetric and "kernels are fast for zero point 0 only",
            "activation_symmetric = true": self.activation_symmetric and "runtimes rewrite signed activations",
        }
        for rule in self.rules:
            if rule.weight_bits not in (None, 4, 6, 8, FLOAT_BITS):
                reasons[f"weight_bits = {rule.weight_bits}"] = "integer weights have 4, 6 or 8 bits"
            if rule.activation_bits not in (None, 6, 8, FLOAT_BITS):
                reasons[f"activation_bits = {rule.activation_bits}"] = "integer activations have 6 or 8 bits"
            if rule.activation_granularity not in (None, "tensor"):
                reasons["activation_granularity"] = "an integer product has one input scale"
        for setting, reason in reasons.items():
            if reason:
                raise RecipeError(f"recipe {self.name}: {setting} is not deployable: {reason}; set deployable = false")

    def bits(self, site: str, key: Literal["weight_bits", "activation_bits"]) -> int:
        """The bits that the rules give a site; 32 where none speaks."""
        found: int = self._last(site, key, FLOAT_BITS)
        return found

    def granularity(self, site: str) -> Literal["tensor", "channel", "token"]:
        """What shares an activation scale at a site."""
        found: Literal["tensor", "channel", "token"] = self._last(site, "activation_granularity", "tensor")
        return found

    def _last(self, site: str, key: str, default: Any) -> Any:
        said = [getattr(rule, key) for rule in self.rules if fnmatchcase(site, rule.match)]
        return next((value for value in reversed(said) if value is not None), default)

    @property
    def runs_as(self) -> Literal["integers", "storage", "simulation"]:
        """What becomes of the result: integer kernels, small files that are float after loading, or only numbers."""
        if self.deployable:
            return "integers"
        activations = {r.activation_bits for r in self.rules} - {None, FLOAT_BITS}
        return "simulation" if activations or self.attention != "float" else "storage"


def _need(condition: bool, section: str, rule: str) -> None:
    if not condition:
        raise RecipeError(f"recipe [{section}]: need {rule}")

"""Recipes: everything that decides how a model is quantized, as frozen data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from d4c.errors import RecipeError

FLOAT_BITS = 32
PAPER_ITERATIONS, PAPER_LEARNING_RATE = 20_000, 1e-3

ImageMethod = Literal["d4c", "noise", "one_over_f", "dead_leaves"]
TEMPLATE_SETS = ("generic", "captions", "cifar10", "imagenet1k")  # shipped with `d4c.prompts`
Start = Literal["noise", "one_over_f", "dead_leaves"]


@dataclass(frozen=True, slots=True)
class Synthesize:
    """How calibration images are made.

    Args:
        method: "d4c" optimises them with the model, by the weighted sum of the objectives below; the others are
            procedural and take no steps. `recipes.methods` names the combinations of the literature.
        images: how many; batch: how many share one softmax (and, with `momentum_drift`, one sweep).
        steps: optimiser steps of each image, over all rounds.
        learning_rate: of Adam, in normalised pixels a step; schedule: its course in a round; rounds: how often
            optimiser and schedule start anew; warm_up: share of a round in which the rate rises to its full height.
        beta1, beta2: of Adam.
        start: what the pixels of "d4c" start from.
        prompt_contrast: weight of the contrast between images and prompts (PGSI); temperature: its τ.
        structural_contrast: crop against background (SCG); perturbation: flips, shifts, colour, blur, erasing (PAE).
        batchnorm_statistics: weight of the distance to the BatchNorms' running statistics (BNS; ResNets only).
        patch_similarity: weight of the entropy of similarities between patches (ViTs only); patch_similarity_of: what
            attention averages before they are compared, its "inputs" as D4C's authors have it, or its "values" as
            PSAQ-ViT has it.
        total_variation: weight of the smoothness term; variation_distance: weight of PSAQ-ViT's distance between
            smoothness and a random target.
        jitter: largest roll along both axes, as a share of the side; the batch is mirrored half of the time too.
        noise: standard deviation of what is added to every view, in normalised pixels, falling to a fifth.
        parametrization: what steps move: "pixels", or a "pyramid" of pictures from one pixel to full size.
        coarse_to_fine: look at small pictures in the first 40 % of the steps, then at half of the patches, and at
            everything in the last 20 %.
        valid_pixels: clamp to what a picture can hold after every step; a pyramid cannot leave it.
        momentum_drift: one optimiser over all images, as the paper's authors have it.
        prompts: "model" takes the model's own bank where it has one, "own" and "paper" name shipped banks.
        hold_out: keep every eighth name of the bank for judging; else all attract images, and names of our own bank
            that are not among them judge.
    """

    method: ImageMethod = "d4c"
    images: int = 64
    steps: int = 25
    batch: int = 16
    learning_rate: float = 0.02
    schedule: Literal["constant", "cosine"] = "cosine"
    rounds: int = 1
    warm_up: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    start: Start = "dead_leaves"
    prompt_contrast: float = 1.0
    temperature: float = 0.1
    structural_contrast: bool = True
    perturbation: bool = True
    batchnorm_statistics: float = 0.0
    patch_similarity: float = 0.0
    patch_similarity_of: Literal["inputs", "values"] = "inputs"
    total_variation: float = 0.1
    variation_distance: float = 0.0
    jitter: float = 0.0
    noise: float = 0.1
    parametrization: Literal["pixels", "pyramid"] = "pyramid"
    coarse_to_fine: bool = True
    valid_pixels: bool = True
    momentum_drift: bool = False
    prompts: Literal["model", "own", "paper"] = "model"
    hold_out: bool = True

    def __post_init__(self) -> None:
        _need(self.images >= 1 and self.batch >= 1 and self.steps >= 0, "synthesize", "images, batch >= 1, steps >= 0")
        _need(self.learning_rate > 0 and self.temperature > 0, "synthesize", "learning_rate and temperature > 0")
        _need(
            min(self.beta1, self.beta2) >= 0 and max(self.beta1, self.beta2) < 1 and 0 <= self.warm_up < 1,
            "synthesize",
            "beta1, beta2 and warm_up from 0 to below 1",
        )
        weights = (self.prompt_contrast, self.batchnorm_statistics, self.patch_similarity, self.total_variation,
                   self.variation_distance)  # fmt: skip
        _need(min(weights) >= 0 and max(weights) > 0, "synthesize", "weights of objectives >= 0, and one above 0")
        _need(
            self.prompt_contrast > 0 or not self.structural_contrast,
            "synthesize",
            "prompt_contrast > 0 where structural_contrast is set: both are one softmax",
        )
        _need(0 <= self.jitter <= 1 and self.noise >= 0, "synthesize", "jitter from 0 to 1, noise >= 0")
        _need(
            self.parametrization == "pixels" or not self.momentum_drift,
            "synthesize",
            'parametrization = "pixels" with momentum_drift',
        )
        _need(
            not (self.coarse_to_fine and self.patch_similarity),
            "synthesize",
            "all patches (coarse_to_fine = false) where patch_similarity compares them",
        )
        _need(
            self.rounds >= 1 and (self.rounds == 1 or not self.momentum_drift),
            "synthesize",
            "rounds >= 1, and 1 with momentum_drift",
        )


@dataclass(frozen=True, slots=True)
class Calibrate:
    """How ranges are found.

    Args:
        texts: how many prompts calibrate the text tower; templates: "generic" takes our own fixed ones, "captions"
            those and short and long captions, lists and figures, "cifar10" and "imagenet1k" those that CLIP is usually
            evaluated with on these sets, and a path ending in .json a file.
        outliers: images that bring some block to more than so many times the value of the median image are left out,
            unless they are more than a tenth; 0 keeps all.
        samples: how many of the images, and of the texts, ranges are found on; 0 takes all.
        padding: whether what follows the end of a text counts too, as it does for the paper's authors.
        range: of activations, "lp" searches the least L_2.4 error, "output_error" the least error of what the layers
            behind put out, "minmax" covers every value.
        weight_range: the same of weights; "auto" searches below 8 bits.
        layernorm_folds: exponents of the per-channel range that is moved from a LayerNorm into its readers, of which
            each LayerNorm takes the best; 0 moves none.
        centre_attention: take what all keys, and all values, of an attention have in common out of them.
    """

    texts: int = 512
    templates: str = "captions"
    outliers: float = 10.0
    samples: int = 0
    padding: bool = False
    range: Literal["lp", "output_error", "minmax"] = "lp"
    weight_range: Literal["auto", "lp", "minmax"] = "auto"
    layernorm_folds: tuple[float, ...] = (0.0,)
    centre_attention: bool = False

    def __post_init__(self) -> None:
        _need(self.outliers == 0 or self.outliers > 1, "calibrate", "outliers > 1, or 0")
        _need(self.texts >= 1 and self.samples >= 0, "calibrate", "texts >= 1, samples >= 0")
        _need(
            self.templates in TEMPLATE_SETS or self.templates.endswith(".json"),
            "calibrate",
            f"templates to be one of {', '.join(TEMPLATE_SETS)}, or a .json file; got '{self.templates}'",
        )
        _need(
            len(self.layernorm_folds) > 0 and all(0 <= e <= 1 for e in self.layernorm_folds),
            "calibrate",
            "layernorm_folds to be a list of exponents from 0 to 1",
        )


@dataclass(frozen=True, slots=True)
class Reconstruct:
    """How rounding is chosen.

    Args:
        method: "closed_form" solves each layer, and takes none of the keys below but `crops`, `refits` and `gate`;
            "adaround" learns it by gradients.
        crops: random crops of each image that are looked at beside it.
        start: what "adaround" starts from: rounding to "nearest", or the codes, scales and biases of the "closed_form".
        unit: "layer" learns the layers that share an input together, "block" whole residual blocks, "auto" takes
            blocks in ResNets and layers elsewhere, as the paper does.
        iterations: steps of each unit; batch: samples of each step.
        rounding_weight: weight of the term that drives soft rounding to 0 or 1; warm_up: fraction of the steps
            without it; beta_start, beta_end: its exponent's course.
        max_rounding_learning_rate: bound of the rounding variables' rate, which is higher where iterations are fewer.
        image_scale_learning_rate, text_scale_learning_rate: of the activation scales.
        keep_quantized: probability that an input value is the quantized one (QDrop; 1 turns dropping off).
        error: "channels" sums a unit's squared error over channels, token by token; "dim1" takes whole samples and sums
            over their dimension 1, which in linears is tokens, as the paper's authors do.
        refits: how often the closed form polishes its codes and refits their scales.
        gate: give up a rounding that is worse than round-to-nearest on held-out samples.
    """

    method: Literal["none", "adaround", "closed_form"] = "closed_form"
    crops: int = 3
    start: Literal["nearest", "closed_form"] = "nearest"
    unit: Literal["layer", "block", "auto"] = "auto"
    iterations: int = 1000
    batch: int = 32
    rounding_weight: float = 0.01
    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    max_rounding_learning_rate: float = 2e-2
    image_scale_learning_rate: float = 4e-5
    text_scale_learning_rate: float = 4e-6
    keep_quantized: float = 1.0
    error: Literal["channels", "dim1"] = "channels"
    refits: int = 1
    gate: bool = True

    def __post_init__(self) -> None:
        _need(self.iterations >= 1 and self.batch >= 1, "reconstruct", "iterations and batch >= 1")
        _need(
            0 <= self.warm_up < 1 and 0 < self.keep_quantized <= 1,
            "reconstruct",
            "0 <= warm_up < 1, 0 < keep_quantized <= 1",
        )
        _need(self.crops >= 0 and self.refits >= 0, "reconstruct", "crops and refits >= 0")
        _need(self.max_rounding_learning_rate > 0, "reconstruct", "max_rounding_learning_rate > 0")

    @property
    def rounding_learning_rate(self) -> float:
        """The paper's 1e-3 at 20,000 iterations; k times fewer iterations learn k times faster, up to the bound.

        Short runs at 1e-3 are round-to-nearest in disguise.
        """
        return min(self.max_rounding_learning_rate, PAPER_LEARNING_RATE * max(1.0, PAPER_ITERATIONS / self.iterations))


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
        fold_batchnorm: absorb BatchNorms into the convolutions before them; else they stay float behind them.
        weight_symmetric, activation_symmetric: grids with zero point 0, or with a free one.
    """

    name: str
    deployable: bool = False
    placement: Literal["tensors", "inputs"] = "tensors"
    attention: Literal["float", "int8", "rules"] = "float"
    fold_batchnorm: bool = True
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
            "fold_batchnorm = false": not self.fold_batchnorm and "an integer convolution requantizes what it puts out",
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

    def with_weight_bits(self, bits: Mapping[str, int]) -> Recipe:
        """The same with other weight bits for some layers, by name."""
        rules = tuple(
            Rule(layer, weight_bits=num) for layer, num in bits.items() if num != self.bits(layer, "weight_bits")
        )
        return dataclasses.replace(self, rules=(*self.rules, *rules))

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

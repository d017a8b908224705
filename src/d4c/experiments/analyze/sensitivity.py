"""Per-layer sensitivity: one layer quantized in an otherwise float model, and all but one in the recipe's model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from d4c import calibrate
from d4c.artifact.work import Report
from d4c.experiments.analyze.cells import Cell, Cells
from d4c.experiments.analyze.sets import errors_by_set
from d4c.images import ImageSet
from d4c.models import Clip, sites_of, wrap
from d4c.models.parts import TowerName
from d4c.models.walk import Walk
from d4c.quantizers.grids import IntegerGrid, PerChannel, PerTensor, TensorFormat
from d4c.quantizers.layers import QuantConv2d, QuantLinear
from d4c.quantizers.scheme import Scheme, Sites, resolve_scheme
from d4c.recipes import Recipe

Mode = Literal["weight", "weight+input"]
MODES: tuple[Mode, ...] = ("weight", "weight+input")
TOWERS: tuple[TowerName, ...] = ("image", "text")


@dataclass(frozen=True)
class Study:
    """What layers are measured with.

    Args:
        clip: float, BatchNorm folded.
        images, ids: what ranges are found on.
        judges: by tower, its inputs; sets: by tower, which rows belong to which set.
        headline: by tower, the sets whose root mean square error counts.
    """

    clip: Clip
    recipe: Recipe
    images: ImageSet
    ids: Tensor
    judges: Mapping[TowerName, Tensor]
    sets: Mapping[TowerName, Mapping[str, slice]]
    headline: Mapping[TowerName, Sequence[str]]


def uniform_scheme(sites: Sites, bits: int, recipe: Recipe, *, inputs: bool) -> Scheme:
    """Every layer's weight, and with `inputs` what goes into it, at the same bits.

    Weights have a scale for each output channel, inputs one for the tensor, belonging to the layer alone: q, k and v
    each have their own. No codes are pair-safe.
    """
    weights = {layer: TensorFormat(IntegerGrid(bits, recipe.weight_symmetric), PerChannel(0)) for layer in sites.layers}
    input_format = TensorFormat(IntegerGrid(bits, recipe.activation_symmetric), PerTensor())
    return Scheme(weights, {}, dict.fromkeys(sites.inputs, input_format) if inputs else {})


def layer_kind(layer: str) -> str:
    """What a layer is, without its number: `image.blocks.3.attention.q` is of the kind `image attention.q`."""
    tower, _, rest = layer.partition(".")
    return f"{tower} {re.sub(r'^(blocks[.][0-9]+|layer[0-9]+[.][0-9]+)[.]', '', rest)}"


def layer_depth(layer: str) -> str:
    """Where a layer stands: the number of its block (`3`, or `2.1` in a ResNet), or "" outside the blocks."""
    found = re.search(r"[.](?:blocks[.]([0-9]+)|layer([0-9]+[.][0-9]+))[.]", layer)
    return "" if found is None else found.group(1) or found.group(2)


def measure(study: Study, bits: Sequence[int], cells: Cells, settings: Sequence[Any], report: Report) -> dict[str, Any]:
    """Measure every layer both ways.

    Returns:
        as JSON, `one`: by mode, bits and layer the errors by set; `without`: by layer (and `kinds`: by kind) the errors
        of the recipe's model with that layer's weight in float again; `all`: by tower, the recipe's errors.
    """
    layers = list(sites_of(study.clip).layers)
    total = len(layers) * (len(bits) * len(MODES) + 1)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        report("sensitivity", done, total)

    one: dict[str, Any] = {}
    float_walk = _walks(study.clip, study)
    all_but_one = _all_but_one(study, float_walk, cells, settings, tick)
    for num_bits in bits:
        for mode, replacement in _replacements(study, num_bits).items():
            cells_of_mode = one.setdefault(mode, {}).setdefault(str(num_bits), {})
            for layer in layers:
                cells_of_mode[layer] = cells.get(
                    "sensitivity", f"{layer}-{num_bits}-{mode}", settings,
                    partial(_one, study, float_walk, layer, replacement),
                )  # fmt: skip
                tick()
    return {"one": one, **all_but_one}


def _replacements(study: Study, num_bits: int) -> dict[Mode, Callable[[str], nn.Module]]:
    """By mode, a function that gives a layer's quantized stand-in; calibration waits for the first that is wanted."""
    sites = sites_of(study.clip)

    @cache
    def ranges() -> Any:
        scheme = uniform_scheme(sites, num_bits, study.recipe, inputs=True)
        return calibrate.run(study.clip, study.images, study.ids, scheme, study.recipe.calibrate)

    @cache
    def wrapped(inputs: bool) -> Clip:
        return wrap(study.clip, uniform_scheme(sites, num_bits, study.recipe, inputs=inputs), ranges())

    return {
        "weight": lambda layer: wrapped(False).get_submodule(layer),
        "weight+input": lambda layer: wrapped(True).get_submodule(layer),
    }


def _walks(model: Clip, study: Study) -> Callable[[TowerName], Walk]:
    @cache
    def walk(tower: TowerName) -> Walk:
        return Walk.over(model, tower, study.judges[tower])

    return walk


def _one(study: Study, walks: Callable[[TowerName], Walk], layer: str, stand_in: Callable[[str], nn.Module]) -> Cell:
    tower: TowerName = "image" if layer.startswith("image.") else "text"
    walk = walks(tower)
    changed = walk.outputs_with({layer: stand_in(layer)})
    return _cell(errors_by_set(walk.outputs, changed, study.sets[tower]), study.headline[tower])


def _cell(errors: Mapping[str, float], headline: Sequence[str]) -> Cell:
    return {"error": rms([errors[name] for name in headline]), "sets": dict(errors)}


def _all_but_one(
    study: Study, float_walk: Callable[[TowerName], Walk], cells: Cells, settings: Sequence[Any],
    tick: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    scheme = resolve_scheme(study.recipe, sites_of(study.clip))

    @cache
    def quantized() -> Clip:
        ranges = calibrate.run(study.clip, study.images, study.ids, scheme, study.recipe.calibrate)
        return wrap(study.clip, scheme, ranges)

    @cache
    def walk(tower: TowerName) -> Walk:
        return Walk.over(quantized(), tower, study.judges[tower])

    def cell(tower: TowerName, changed: Tensor) -> Cell:
        errors = errors_by_set(float_walk(tower).outputs, changed, study.sets[tower])
        return _cell(errors, study.headline[tower])

    def everything(tower: TowerName) -> Cell:
        return cell(tower, walk(tower).outputs)

    def without(layers: Sequence[str]) -> Cell:
        tower: TowerName = "image" if layers[0].startswith("image.") else "text"
        return cell(
            tower,
            walk(tower).outputs_with({layer: _with_float_weight(quantized(), study.clip, layer) for layer in layers}),
        )

    kinds: dict[str, list[str]] = {}
    for layer in scheme.weights:
        kinds.setdefault(layer_kind(layer), []).append(layer)
    found: dict[str, Any] = {"all": {}, "without": {}, "kinds": {}}
    for tower in TOWERS:
        found["all"][tower] = cells.get("sensitivity", f"all-{tower}", settings, partial(everything, tower))
    for layer in scheme.weights:
        found["without"][layer] = cells.get("sensitivity", f"without-{layer}", settings, partial(without, [layer]))
        tick()
    for kind, layers in kinds.items():
        found["kinds"][kind] = cells.get("sensitivity", f"without-kind-{kind}", settings, partial(without, layers))
    found["bits"] = {layer: weight.grid.num_bits for layer, weight in scheme.weights.items()}
    return found


def _with_float_weight(quantized: Clip, clip: Clip, layer: str) -> nn.Module:
    """The float layer behind what quantizes the quantized layer's input."""
    module, plain = quantized.get_submodule(layer), clip.get_submodule(layer)
    return nn.Sequential(module.input_quantizer, plain) if isinstance(module, QuantLinear | QuantConv2d) else plain


def rms(values: Sequence[float]) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def returned_share(error: float, error_without: float) -> float:
    """Share of the squared error that goes when a layer is float again, 1 - (e_without / e_all)^2.

    Errors of layers that do not depend on each other add in their squares, so shares of layers add to about 1;
    negative where other layers' errors had been cancelled.
    """
    return 1 - (error_without / error) ** 2 if error > 0 else 0.0


def share_by_kind(errors: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """How a tower's summed squared error divides over kinds of layers.

    Args:
        errors: by layer, each alone in an otherwise float model.

    Returns:
        by kind `root_sum_square`, sqrt(sum e^2) over its layers, and `share`, its squares over all of the same tower's.
    """
    squares: dict[str, float] = {}
    for layer, error in errors.items():
        squares[layer_kind(layer)] = squares.get(layer_kind(layer), 0.0) + error**2
    towers: dict[str, float] = {}
    for kind, square in squares.items():
        towers[kind.split()[0]] = towers.get(kind.split()[0], 0.0) + square
    return {
        kind: {"root_sum_square": float(np.sqrt(s)), "share": s / towers[kind.split()[0]] if s > 0 else 0.0}
        for kind, s in squares.items()
    }


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation, the correlation of ranks; ties in the order given. NaN-free: 0 below two values."""
    if len(a) < 2:
        return 0.0
    ranks = [np.argsort(np.argsort(np.asarray(x), kind="stable"), kind="stable").astype(float) for x in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def summarize(result: Mapping[str, Any], reference: str | None, top: int = 12) -> dict[str, Any]:
    """Rank layers and kinds.

    Returns:
        `bottlenecks`: by tower the layers that return most of the recipe's squared error, best first; `kinds`: by mode
        and bits `share_by_kind`; `kinds_without`: by kind the share returned; `rank_agreement`: Spearman's correlation
        between layers' errors on held-out sets and on the reference, by mode and bits, image tower.
    """
    everything = result["all"]
    returned = {
        layer: returned_share(everything[layer.split(".")[0]]["error"], cell["error"])
        for layer, cell in result["without"].items()
    }
    ranked = sorted(returned, key=lambda layer: -returned[layer])
    errors = {
        (mode, bits): {layer: cell["error"] for layer, cell in by_layer.items()}
        for mode, by_bits in result["one"].items()
        for bits, by_layer in by_bits.items()
    }
    summary: dict[str, Any] = {
        "bottlenecks": {
            tower: [
                {"layer": layer, "returned": returned[layer], "bits": result["bits"][layer]}
                for layer in ranked if layer.startswith(f"{tower}.")
            ][:top]
            for tower in TOWERS
        },
        "kinds": {
            mode: {b: share_by_kind(errors[mode, b]) for b in by_bits} for mode, by_bits in result["one"].items()
        },
        "kinds_without": {
            kind: returned_share(everything[kind.split()[0]]["error"], cell["error"])
            for kind, cell in result["kinds"].items()
        },
        "rank_agreement": None,
    }  # fmt: skip
    if reference is not None:
        summary["rank_agreement"] = {
            mode: {b: _rank_agreement(by_layer, reference) for b, by_layer in by_bits.items()}
            for mode, by_bits in result["one"].items()
        }
    return summary


def _rank_agreement(by_layer: Mapping[str, Cell], reference: str) -> float:
    cells = [cell for layer, cell in by_layer.items() if layer.startswith("image.")]
    return rank_correlation([c["error"] for c in cells], [c["sets"][reference] for c in cells])

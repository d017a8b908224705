"""The paper's YAML files: what their keys mean in a recipe."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from d4c.errors import RecipeError
from d4c.recipes.recipe import Recipe

TEXT_MLP = "text.blocks.*.mlp.*"  # 8 bits whatever the file says
_OBSERVERS = {"MSEObserver": "lp", "MinMaxObserver": "minmax"}
# What the method's own machinery is called there; another choice is another method.
_ONLY = {
    ("a_qconfig", "quantizer"): "LSQFakeQuantize",
    ("w_qconfig", "quantizer"): "AdaRoundFakeQuantize",
    ("a_qconfig", "ch_axis"): -1,
    ("w_qconfig", "ch_axis"): 0,
    ("recon", "round_mode"): "learned_hard_sigmoid",
}


def recipe_from_yaml(path: str, base: Recipe) -> Recipe:
    """Read one of the paper's configurations; `configNN.yaml` that is no file means the shipped copy of that name.

    A key `root` names a file, relative to this one, that supplies the top-level keys this one lacks. Unknown keys are
    ignored, as there.

    Args:
        base: a `paper-*` recipe, for what these files do not say.

    Returns:
        `base` with the file's bits, counts and learning settings.

    Raises:
        RecipeError: a file or a key is missing, is not YAML, or asks for a quantizer or observer that d4c lacks.
    """
    data = _read(_resolve(path), seen=())
    name = Path(path).stem
    for (section, key), known in _ONLY.items():
        if _get(data, section, key, name) != known:
            raise RecipeError(f"{name}: {section}.{key} = {data[section][key]!r} is not supported, only {known!r}")
    try:
        return _recipe(data, name, base)
    except (TypeError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{name}: a value of the wrong kind: {error}") from error


def _recipe(data: dict[str, Any], name: str, base: Recipe) -> Recipe:
    def get(section: str, key: str) -> Any:
        return _get(data, section, key, name)

    if get("recon", "visual_batch_size") != get("recon", "text_batch_size"):
        raise RecipeError(f"{name}: recon.visual_batch_size and text_batch_size differ; d4c has one batch for both")
    start, end = get("recon", "b_range")
    weight_bits, activation_bits = int(get("w_qconfig", "bit")), int(get("a_qconfig", "bit"))
    rules = tuple(
        dataclasses.replace(rule, weight_bits=weight_bits, activation_bits=activation_bits)
        if rule.weight_bits and rule.match != TEXT_MLP
        else rule
        for rule in base.rules
    )
    return dataclasses.replace(
        base,
        name=name,
        weight_symmetric=bool(get("w_qconfig", "symmetric")),
        activation_symmetric=bool(get("a_qconfig", "symmetric")),
        synthesize=dataclasses.replace(base.synthesize, images=int(get("calibrate", "visual"))),
        calibrate=dataclasses.replace(
            base.calibrate,
            texts=int(get("calibrate", "text")),
            range=_observer(get("a_qconfig", "observer"), name),
            weight_range=_observer(get("w_qconfig", "observer"), name),
        ),
        reconstruct=dataclasses.replace(
            base.reconstruct,
            iterations=int(get("recon", "iters")),
            batch=int(get("recon", "visual_batch_size")),
            rounding_weight=float(get("recon", "weight")),
            warm_up=float(get("recon", "warm_up")),
            beta_start=float(start),
            beta_end=float(end),
            image_scale_learning_rate=float(get("recon", "visual_scale_lr")),
            text_scale_learning_rate=float(get("recon", "text_scale_lr")),
            keep_quantized=float(get("recon", "drop_prob")),
        ),
        rules=rules,
    )


def _observer(name: Any, source: str) -> Any:
    if name not in _OBSERVERS:
        raise RecipeError(f"{source}: observer {name!r} is not supported; known: {', '.join(_OBSERVERS)}")
    return _OBSERVERS[name]


def _get(data: dict[str, Any], section: str, key: str, name: str) -> Any:
    try:
        return data[section][key]
    except (KeyError, TypeError) as error:
        raise RecipeError(f"{name}: {section}.{key} is missing") from error


def _resolve(path: str) -> Path:
    shipped = Path(str(resources.files("d4c.recipes"))) / "paper" / Path(path).name
    return shipped if not Path(path).exists() and shipped.is_file() else Path(path)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: not a table of settings")
    if "root" not in data:
        return data
    root = (path.parent / str(data["root"])).resolve()
    if root in seen:
        raise RecipeError(f"{path}: its roots name each other")
    return {**_read(root, (*seen, root)), **data}

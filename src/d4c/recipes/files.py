"""Reading and writing recipes as TOML."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from d4c.errors import RecipeError, UnknownNameError, nearest
from d4c.recipes.paper_yaml import recipe_from_yaml
from d4c.recipes.recipe import Calibrate, Recipe, Reconstruct, Rule, Synthesize

SECTIONS: dict[str, type] = {"synthesize": Synthesize, "calibrate": Calibrate, "reconstruct": Reconstruct}

# What rounding in closed form, the default, takes no notice of.
LEARNING_KEYS = {f.name for f in dataclasses.fields(Reconstruct)} - {"method", "crops", "refits", "gate"}


def recipe_names() -> list[str]:
    """The shipped recipes."""
    folder = resources.files("d4c.recipes")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def introduction(name: str) -> str:
    """What a shipped recipe says of itself: the comment that it begins with."""
    first = resources.files("d4c.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a file by path, and change single keys.

    Args:
        name: of `recipe_names()`, or a path to a TOML file, or to one of the paper's YAML files.
        overrides: `section.key=value` or `key=value`, values as in TOML; text needs no quotes.

    Raises:
        UnknownNameError: no such recipe.
        RecipeError: a file or an override that cannot be read, an unknown key, or a setting that is not possible.
    """
    if name.endswith((".yaml", ".yml")):
        recipe = recipe_from_yaml(name, load_recipe("paper-w4a8"))
        return parse_recipe(recipe.name, dump_recipe(recipe), overrides)
    if name.endswith(".toml"):
        try:
            text, name = Path(name).read_text(encoding="utf-8"), Path(name).stem
        except OSError as error:
            raise RecipeError(f"{name}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{name}: not UTF-8 text: {error}") from error
    elif name in recipe_names():
        text = resources.files("d4c.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise UnknownNameError("recipe", name, recipe_names())
    return parse_recipe(name, text, overrides)


def parse_recipe(name: str, text: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from TOML text; errors as for `load_recipe`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name}: not TOML: {error}") from error
    for override in overrides:
        _override(data, override)
    rules = data.pop("rule", [])
    data.pop("name", None)
    if not isinstance(rules, list):
        raise RecipeError(f"recipe {name}: rules are written as [[rule]] tables")
    _check_learning_keys(data.get("reconstruct"), f"recipe {name} [reconstruct]")
    sections = {key: _build(cls, data.pop(key, {}), f"recipe {name} [{key}]") for key, cls in SECTIONS.items()}
    built = tuple(_build(Rule, rule, f"recipe {name} [[rule]]") for rule in rules)
    known = [*(f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "rules")), "rule"]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise RecipeError(_unknown_key(f"recipe {name}", unknown[0], known))
    recipe: Recipe = _build(Recipe, {**data, "name": name, "rules": built, **sections}, f"recipe {name}")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The fully resolved recipe as TOML; `parse_recipe` gives it back."""
    lines = [f"name = {_toml(recipe.name)}"]
    for f in dataclasses.fields(recipe):
        if f.name not in ("name", "rules", *SECTIONS):
            lines.append(f"{f.name} = {_toml(getattr(recipe, f.name))}")
    for section in SECTIONS:
        lines += ["", f"[{section}]", *_pairs(getattr(recipe, section))]
    for rule in recipe.rules:
        lines += ["", "[[rule]]", *_pairs(rule)]
    return "\n".join(lines) + "\n"


def _pairs(part: Any) -> list[str]:
    values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    return [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]


def _toml(value: Any) -> str:
    # Strings, finite numbers and booleans are written alike in both, but TOML has no surrogate pairs.
    return json.dumps(value, ensure_ascii=False)


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, dot, leaf = key.strip().rpartition(".")
    if not equals or not leaf:
        raise RecipeError(f"--set {override}: write section.key=value, as in synthesize.images=64")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    if dot and section not in SECTIONS:
        raise RecipeError(_unknown_key(f"--set {override}", section, SECTIONS))
    table = data.setdefault(section, {}) if dot else data
    if isinstance(table, dict):  # else `_build` says what is wrong
        table[leaf] = parsed


def _check_learning_keys(table: Any, where: str) -> None:
    """Refuse keys of AdaRound where nothing names a method, and so none would be learned: they would do nothing."""
    if isinstance(table, dict) and "method" not in table:
        for key in table:
            if key in LEARNING_KEYS:
                raise RecipeError(f'{where}: {key} is of AdaRound; set method = "adaround" too')


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: write a table, not {values!r}")
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise RecipeError(_unknown_key(where, key, hints))
        values[key] = _check_type(value, hints[key], f"{where}: {key}")
    try:
        return cls(**values)
    except TypeError as error:
        raise RecipeError(f"{where}: {str(error).split(') ', 1)[-1]}") from error


def _check_type(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    choices = next((typing.get_args(option) for option in options if typing.get_origin(option) is Literal), None)
    if choices:
        if value not in choices:
            close = nearest(str(value), choices)
            guess = f"; did you mean '{close}'?" if close else "."
            raise RecipeError(f"{where} cannot be {value!r}{guess} Known: {', '.join(choices)}")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} needs a list, not {value!r}")
        return tuple(_check_type(item, typing.get_args(hint)[0], where) for item in value)
    if float in options and type(value) is int:
        return float(value)
    if type(value) is float and not math.isfinite(value):
        raise RecipeError(f"{where} needs a finite number, not {value}")
    if any(type(value) is option for option in options) or any(
        typing.get_origin(o) or dataclasses.is_dataclass(o) for o in options
    ):
        return value
    names = " or ".join(o.__name__ for o in options if o is not types.NoneType)
    raise RecipeError(f"{where} needs {names}, not {value!r}")


def _unknown_key(where: str, key: str, known: Any) -> str:
    close = nearest(key, known)
    guess = f"; did you mean '{close}'?" if close else "."
    return f"{where}: unknown key '{key}'{guess} Known: {', '.join(known)}"

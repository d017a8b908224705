"""A grid of runs as data, read from TOML: models x recipes x methods x seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d4c.errors import RecipeError, UsageError, nearest
from d4c.recipes import Recipe, load_recipe, recipe_names
from d4c.recipes.methods import METHODS, with_method

MAX_SYNTHESIS_RATE = 0.2
KEYS = ("dataset", "seeds", "synthesis_factor", "reconstruction_factor", "set", "method", "recipe", "run")
# Methods beside `recipes.methods`: the user's own pictures, what the recipe says, and the paper's comparison.
REAL, OWN, BASELINE = "real", "recipe", "baseline"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run.

    Args:
        recipe: a shipped recipe's name, or a path; label: how tables call it, the grid's own name for it if it has one.
        method: "real", "recipe", "baseline" (BNS for ResNets, PSE for ViTs), a name of `recipes.methods`, or one of the
            grid's own.
    """

    model: str
    recipe: str
    label: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"{self.model}-{self.label}-{self.method}-{self.seed}".replace("/", "-").replace(":", "-")


@dataclass(frozen=True, slots=True)
class Grid:
    """What `d4c compare` does.

    Args:
        dataset: what accuracy is measured on; cells: in the order of the file, none twice.
        synthesis_factor, reconstruction_factor: how many times fewer steps than the recipes say (`scaled`).
        overrides: `section.key=value`, for all recipes; methods: the grid's own, `[synthesize]` keys by name; recipes:
            the grid's own, what each changes by label.
    """

    name: str
    dataset: str
    cells: tuple[Cell, ...]
    synthesis_factor: float = 1.0
    reconstruction_factor: float = 1.0
    overrides: tuple[str, ...] = ()
    methods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    recipes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell, its method's settings in place, scaled."""
        own = (*self.recipes.get(cell.label, ()), *self.methods.get(cell.method, ()))
        recipe = load_recipe(cell.recipe, (*self.overrides, *own))
        if cell.method in METHODS:
            recipe = dataclasses.replace(recipe, synthesize=with_method(recipe.synthesize, cell.method))
        return scaled(recipe, self.synthesis_factor, self.reconstruction_factor)


def scaled(recipe: Recipe, synthesis: float, reconstruction: float) -> Recipe:
    """Fewer steps: synthesis divided by one factor, reconstruction by another.

    Synthesis with k times fewer steps learns sqrt(k) times faster, up to a rate of 0.2. The rate of rounding variables
    follows from the iterations (`Reconstruct.rounding_learning_rate`).
    """
    config = recipe.synthesize
    rate = max(config.learning_rate, min(MAX_SYNTHESIS_RATE, config.learning_rate * math.sqrt(synthesis)))
    steps = max(config.rounds, round(config.steps / synthesis)) if config.steps else 0
    iterations = max(1, round(recipe.reconstruct.iterations / reconstruction))
    return dataclasses.replace(
        recipe,
        synthesize=dataclasses.replace(config, steps=steps, learning_rate=rate),
        reconstruct=dataclasses.replace(recipe.reconstruct, iterations=iterations),
    )


def read_grid(path: Path) -> Grid:
    """Read a grid.

        dataset = "wds/tiny-imagenet"
        seeds = [0, 1, 2]
        synthesis_factor = 30
        reconstruction_factor = 100
        [set]                                   # keys of every recipe
        synthesize.images = 64
        [method.twice]                          # a name for other ways to make images, keys of [synthesize]
        steps = 120
        [recipe.quick]                          # a name for a recipe with some keys changed
        from = "w4a8"
        reconstruct.method = "closed_form"
        [[run]]                                 # as many as there are
        models = ["tiny"]
        recipes = ["paper-w4a8", "mine.toml", "quick"]   # files lie beside the grid
        methods = ["real", "noise", "baseline", "d4c-3", "twice"]

    Raises:
        UsageError: the file cannot be read, a key is unknown or missing, or has a value of the wrong kind.
        UnknownNameError, RecipeError: a recipe or a method that does not exist.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    _check_keys(data, KEYS, f"{path}")
    seeds = _list(data, "seeds", int, f"{path}")
    methods = _methods(data.get("method", {}), f"{path}")
    bases, changes = _recipes(data.get("recipe", {}), f"{path}")
    cells: dict[Cell, None] = {}
    for run in data.get("run", []):
        where = f"{path} [[run]]"
        _check_keys(run, ("models", "recipes", "methods"), where)
        for model in _list(run, "models", str, where):
            for recipe in _list(run, "recipes", str, where):
                for method in _list(run, "methods", str, where):
                    cells |= {_cell(model, recipe, method, seed, path, methods, bases): None for seed in seeds}
    if not cells:
        raise UsageError(f"{path}: no [[run]]")
    _check_labels(cells, f"{path}")
    factors = {
        key: _factor(data.get(key, 1), f"{path}: {key}") for key in ("synthesis_factor", "reconstruction_factor")
    }
    if not isinstance(data.get("dataset"), str):
        raise UsageError(f'{path}: dataset is missing, as in dataset = "wds/tiny-imagenet"')
    overrides = _flat(data.get("set", {}), f"{path} [set]")
    grid = Grid(
        path.stem, data["dataset"], tuple(cells), overrides=overrides, methods=methods, recipes=changes, **factors
    )
    for cell in grid.cells:
        grid.recipe(cell)
    return grid


def _check_labels(cells: Iterable[Cell], where: str) -> None:
    recipes: dict[str, str] = {}
    for cell in cells:
        if recipes.setdefault(cell.label, cell.recipe) != cell.recipe:
            raise UsageError(f"{where}: two recipes would be called {cell.label}; rename a file")


def _methods(tables: Any, where: str) -> dict[str, tuple[str, ...]]:
    """The grid's own methods, each as overrides of `[synthesize]`."""
    methods = {}
    for name, table in tables.items() if isinstance(tables, Mapping) else ():
        if name in (*METHODS, REAL, OWN, BASELINE):
            raise UsageError(f"{where}: method {name} exists already; take another name")
        if not isinstance(table, Mapping):
            raise UsageError(f"{where} [method.{name}]: write a table")
        methods[name] = _flat({"synthesize": table}, f"{where} [method.{name}]")
    return methods


def _recipes(tables: Any, where: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """What each of the grid's own recipes starts from, and what it changes."""
    bases, changes = {}, {}
    for name, table in tables.items() if isinstance(tables, Mapping) else ():
        if name in recipe_names() or _is_file(name):
            raise UsageError(f"{where}: recipe {name} exists already, or is a file's name; take another name")
        if not isinstance(table, Mapping) or not isinstance(table.get("from"), str):
            raise UsageError(f'{where} [recipe.{name}]: write a table with a recipe to start from, as in from = "w4a8"')
        bases[name] = table["from"]
        changes[name] = _flat({k: v for k, v in table.items() if k != "from"}, f"{where} [recipe.{name}]")
    return bases, changes


def _cell(
    model: str, recipe: str, method: str, seed: int, path: Path, own: Collection[str], bases: Mapping[str, str]
) -> Cell:
    known = (*METHODS, REAL, OWN, BASELINE, *own)
    if method not in known:
        raise RecipeError(_unknown(f"{path}", "method", method, known))
    base = bases.get(recipe, recipe)
    label = Path(recipe).stem if _is_file(recipe) else recipe
    if _is_file(recipe) and label in bases:
        raise UsageError(f"{path}: {recipe} and [recipe.{label}] would have one name; take another")
    return Cell(model, str(path.parent / base) if _is_file(base) else base, label, method, seed)


def _is_file(recipe: str) -> bool:
    return recipe.endswith((".toml", ".yaml", ".yml"))


def _list(data: Any, key: str, kind: type, where: str) -> list[Any]:
    values = data.get(key)
    if not isinstance(values, list) or not values or not all(type(v) is kind for v in values):
        raise UsageError(f"{where}: {key} is a list of {'numbers' if kind is int else 'names'}")
    return values


def _factor(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value < math.inf:
        raise UsageError(f"{where} is a number from 1; got {value!r}")
    return float(value)


def _flat(table: Any, where: str) -> tuple[str, ...]:
    """Nested tables as `section.key=value`."""
    overrides = []
    for section, value in table.items() if isinstance(table, Mapping) else ():
        pairs = value.items() if isinstance(value, Mapping) else (("", value),)
        for key, given in pairs:
            if isinstance(given, Mapping):
                raise UsageError(f"{where}: {section}.{key} is a table")
            written = json.dumps(given, default=str)  # as in TOML
            overrides.append(f"{section}{'.' if key else ''}{key}={written}")
    return tuple(overrides)


def _check_keys(data: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(data, dict):
        raise UsageError(f"{where}: write a table")
    for key in data:
        if key not in known:
            raise UsageError(_unknown(where, "key", key, known))


def _unknown(where: str, kind: str, given: str, known: tuple[str, ...]) -> str:
    close = nearest(given, known)
    guess = f"; did you mean '{close}'?" if close else "."
    return f"{where}: unknown {kind} '{given}'{guess} Known: {', '.join(known)}"

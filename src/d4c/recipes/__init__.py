"""Recipes as data: what to do, read from TOML."""

from d4c.recipes.files import dump_recipe, load_recipe, parse_recipe, recipe_names
from d4c.recipes.recipe import FLOAT_BITS, Calibrate, Recipe, Reconstruct, Rule, Synthesize

__all__ = [
    "FLOAT_BITS",
    "Calibrate",
    "Recipe",
    "Reconstruct",
    "Rule",
    "Synthesize",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_names",
]

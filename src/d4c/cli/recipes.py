"""`d4c recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from d4c.cli import options
from d4c.cli.tables import print_json, print_table


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, to print in full.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the shipped recipes, or print one with every key resolved."""
    import dataclasses

    from d4c.recipes import dump_recipe, load_recipe, recipe_names
    from d4c.recipes.files import introduction

    if name is not None:
        recipe = load_recipe(name)
        if as_json:
            print_json(dataclasses.asdict(recipe))
        else:
            typer.echo(dump_recipe(recipe), nl=False)
        return
    rows = [[n, load_recipe(n).runs_as, introduction(n)] for n in recipe_names()]
    if as_json:
        print_json([{"name": n, "runs_as": kind, "about": about} for n, kind, about in rows])
    else:
        print_table("recipes", ["name", "runs as", "about"], rows)

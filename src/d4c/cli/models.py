"""`d4c models`."""

from __future__ import annotations

from typing import Annotated

import typer

from d4c.cli import options
from d4c.cli.tables import print_json, print_table
from d4c.errors import UnknownNameError


def models(
    name: Annotated[str | None, typer.Argument(help="An open_clip architecture, to list its tags.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the models that can be named, or the tags of one architecture."""
    from d4c.models.names import BUNDLED, OPENAI_NAMES, architecture_name, registered_names, registered_tags

    if name is None:
        known = {"bundled": list(BUNDLED), "OpenAI": list(OPENAI_NAMES), "open_clip": registered_names()}
        if as_json:
            print_json(known)
        else:
            print_table("models", ["form", "names"], [[form, ", ".join(names)] for form, names in known.items()])
        return
    architecture = architecture_name(name)
    if architecture not in registered_names():
        raise UnknownNameError("model", name, registered_names())
    tags = registered_tags(architecture)
    if as_json:
        print_json({"model": architecture, "tags": tags})
    else:
        print_table(architecture, ["tag", "as one name"], [[tag, f"{architecture}__{tag}"] for tag in tags])

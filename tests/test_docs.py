"""What the pages say exists: links, functions, recipe keys, and examples that can be read."""

import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest

from d4c.experiments.grid import read_grid
from d4c.prompts import read_prompts
from d4c.recipes import Calibrate, Recipe, Reconstruct, Rule, Synthesize, load_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("training/*.md")])
RECIPES = ROOT / "docs" / "recipes.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them: lower case, what is neither letter, digit nor hyphen left out."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_functions_of_the_paper_map_exist() -> None:
    names = re.findall(r"`(d4c(?:\.\w+)+)`", (ROOT / "docs" / "paper-map.md").read_text("utf-8"))
    assert len(names) > 30
    for name in names:
        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, attribute) or importlib.import_module(name), name


def test_the_page_of_recipes_tells_every_key() -> None:
    told = set(re.findall(r"`(\w+)`", RECIPES.read_text("utf-8")))
    parts = {"name", "rules", "synthesize", "calibrate", "reconstruct"}
    for cls in (Recipe, Synthesize, Calibrate, Reconstruct, Rule):
        assert {f.name for f in dataclasses.fields(cls)} - parts <= told, cls


def test_examples_of_the_page_of_recipes_can_be_read(tmp_path: Path) -> None:
    recipe, grid = blocks(RECIPES, "toml")
    (prompts,) = blocks(RECIPES, "json")
    for name, text in (("mine.toml", recipe), ("grid.toml", grid), ("prompts.json", prompts)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    mine = load_recipe(str(tmp_path / "mine.toml"))
    assert mine.runs_as == "integers"
    assert mine.bits("text.blocks.3.mlp.fc1", "weight_bits") == 8
    assert len(read_grid(tmp_path / "grid.toml").cells) == 2 * 2 * 5 * 3
    bank = read_prompts(tmp_path / "prompts.json")
    assert len(bank.split()[1].classnames) == 1
    assert len(json.loads(prompts)["groups"]) == 2

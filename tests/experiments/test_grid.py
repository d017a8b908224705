import math
from pathlib import Path

import pytest

from d4c.errors import D4CError, RecipeError, UnknownNameError, UsageError
from d4c.experiments.grid import read_grid, scaled
from d4c.recipes import load_recipe

GRID = """
dataset = "wds/colours"
seeds = [0, 1]
synthesis_factor = 30
reconstruction_factor = 100
[set]
synthesize.images = 64
placement = "inputs"
[[run]]
models = ["tiny", "tiny-rn"]
recipes = ["paper-w4a8", "mine.toml"]
methods = ["real", "baseline", "d4c-3"]
[[run]]
models = ["tiny"]
recipes = ["paper-w4a8"]
methods = ["recipe", "d4c-3"]
"""


def write(folder: Path, text: str = GRID) -> Path:
    (folder / "mine.toml").write_text('[[rule]]\nmatch = "*"\nweight_bits = 4\n')
    (folder / "grid.toml").write_text(text)
    return folder / "grid.toml"


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path))
    # 2 models x 2 recipes x 3 methods x 2 seeds, and from the second run what is new: 1 x 1 x 1 x 2.
    assert len(grid.cells) == 24 + 2
    assert len({cell.name for cell in grid.cells}) == len(grid.cells)
    assert (grid.name, grid.dataset) == ("grid", "wds/colours")
    assert {cell.label for cell in grid.cells} == {"paper-w4a8", "mine"}


def test_recipes_of_a_grid_have_its_settings_the_method_and_the_factors(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path))
    (cell,) = [c for c in grid.cells if (c.model, c.label, c.method, c.seed) == ("tiny", "paper-w4a8", "d4c-3", 0)]
    recipe = grid.recipe(cell)
    assert recipe.synthesize.images == 64
    assert (recipe.synthesize.structural_contrast, recipe.synthesize.perturbation) == (True, True)
    assert (recipe.synthesize.steps, recipe.reconstruct.iterations) == (100, 200)
    assert recipe.synthesize.learning_rate == pytest.approx(0.01 * math.sqrt(30))
    assert recipe.reconstruct.rounding_learning_rate == 2e-3  # 1e-3 x 100, but at most the recipe's bound


def test_a_grid_may_name_its_own_ways_to_make_images_and_set_lists(tmp_path: Path) -> None:
    text = GRID.replace("[[run]]", '[method.slow]\nsteps = 900\nstart = "dead_leaves"\n[[run]]', 1)
    text = text.replace('"d4c-3"]\n[[run]]', '"slow"]\n[[run]]').replace(
        "[set]", "[set]\ncalibrate.layernorm_folds = [0, 0.5]"
    )
    grid = read_grid(write(tmp_path, text))
    (cell,) = [c for c in grid.cells if (c.model, c.label, c.method, c.seed) == ("tiny", "paper-w4a8", "slow", 1)]
    recipe = grid.recipe(cell)
    assert (recipe.synthesize.steps, recipe.synthesize.start) == (30, "dead_leaves")
    assert recipe.calibrate.layernorm_folds == (0.0, 0.5)


def test_a_grid_may_name_its_own_recipes(tmp_path: Path) -> None:
    own = """[recipe.quick]
from = "mine.toml"
reconstruct.method = "adaround"
synthesize.images = 32
[[run]]"""
    grid = read_grid(write(tmp_path, GRID.replace("[[run]]", own, 1).replace('"mine.toml"]', '"mine.toml", "quick"]')))
    plain, quick = ([c for c in grid.cells if c.label == label] for label in ("mine", "quick"))
    assert [(c.model, c.method, c.seed) for c in plain] == [(c.model, c.method, c.seed) for c in quick]
    for first, second in zip(map(grid.recipe, plain), map(grid.recipe, quick), strict=True):
        assert first.rules == second.rules
        assert (first.reconstruct.method, second.reconstruct.method) == ("closed_form", "adaround")
        assert (first.synthesize.images, second.synthesize.images) == (64, 32)


@pytest.mark.parametrize(("rate", "expected"), [(0.01, 0.1), (0.05, 0.2), (0.3, 0.3)])
def test_the_rate_of_synthesis_grows_with_the_root_of_the_factor_to_a_limit(rate: float, expected: float) -> None:
    recipe = scaled(load_recipe("paper-w4a8", [f"synthesize.learning_rate={rate}"]), 100, 1)
    assert recipe.synthesize.learning_rate == pytest.approx(expected)
    assert (recipe.synthesize.steps, recipe.reconstruct.iterations) == (30, 20_000)


def test_factors_of_one_change_nothing() -> None:
    recipe = load_recipe("paper-w4a8")
    assert scaled(recipe, 1, 1) == recipe


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ('"d4c-3"]', '"d4c-4"]', RecipeError, "d4c-3"),
        ('"paper-w4a8",', '"paper-w4a9",', UnknownNameError, "paper-w4a8"),
        ("seeds", "seedz", UsageError, "seeds"),
        ("seeds = [0, 1]", "seeds = []", UsageError, "list of numbers"),
        ("seeds = [0, 1]", 'seeds = ["0"]', UsageError, "list of numbers"),
        ('models = ["tiny", "tiny-rn"]', "", UsageError, "models"),
        ("[[run]]\nmodels", "[[run]]\nmodel = 1\nmodels", UsageError, "models"),
        ("synthesis_factor = 30", "synthesis_factor = 0.5", UsageError, "synthesis_factor"),
        ("synthesis_factor = 30", "synthesis_factor = true", UsageError, "synthesis_factor"),
        ("synthesis_factor = 30", "synthesis_factor = inf", UsageError, "synthesis_factor"),
        ('dataset = "wds/colours"', "", UsageError, "dataset"),
        ("synthesize.images = 64", "synthesize.image = 64", RecipeError, "images"),
        ("synthesize.images = 64", "synthesize.images = [64]", RecipeError, "needs int"),
        ("synthesize.images = 64", "synthesize.images.x = 64", UsageError, "is a table"),
        ("[[run]]", "[method.noise]\nsteps = 2\n[[run]]", UsageError, "exists already"),
        (
            "[[run]]",
            '[method.mine]\nstep = 2\n[[run]]\nmodels=["tiny"]\nrecipes=["w4a8"]\nmethods=["mine"]\n[[run]]',
            RecipeError,
            "did you mean 'steps'",
        ),
        ('dataset = "wds/colours"', 'dataset = "wds/colours"\nmethod.mine = 3', UsageError, "write a table"),
        ("[[run]]", '[recipe.w4a8]\nfrom = "w4"\n[[run]]', UsageError, "exists already"),
        ("[[run]]", '[recipe.mine]\nfrom = "w4"\n[[run]]', UsageError, "one name"),
        ("[[run]]", "[recipe.own]\nsynthesize.steps = 2\n[[run]]", UsageError, "to start from"),
        (
            "[[run]]",
            '[recipe.own]\nfrom="w4"\nx.y = 2\n[[run]]\nmodels=["tiny"]\nrecipes=["own"]\nmethods=["real"]\n[[run]]',
            RecipeError,
            "x",
        ),
        ("dataset", "= [", UsageError, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said_in_one_line(
    old: str, new: str, kind: type[D4CError], said: str, tmp_path: Path
) -> None:
    assert old in GRID
    with pytest.raises(kind) as error:
        read_grid(write(tmp_path, GRID.replace(old, new, 1)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_grid_without_runs_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \[\[run\]\]"):
        read_grid(write(tmp_path, 'dataset = "a"\nseeds = [0]\n'))
    with pytest.raises(UsageError, match="cannot be read"):
        read_grid(tmp_path / "none.toml")


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w4a8.toml").write_text('[[rule]]\nmatch = "*"\nweight_bits = 4\n')
    text = GRID.replace('"paper-w4a8", "mine.toml"', '"w4a8", "w4a8.toml"')
    with pytest.raises(UsageError, match="two recipes would be called w4a8"):
        read_grid(write(tmp_path, text))

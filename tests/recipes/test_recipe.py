from typing import Any

import pytest

from d4c.errors import RecipeError
from d4c.recipes import Calibrate, Recipe, Reconstruct, Rule, Synthesize, load_recipe

RUNS_AS = {
    "w8a8": "integers", "w6a6": "integers", "w4a8": "integers", "w8": "storage", "w4": "storage", "w4a4": "simulation",
    "w3a3": "simulation", "w2a3": "simulation",
}  # fmt: skip


@pytest.mark.parametrize(
    ("iterations", "rate"),
    [
        (20_000, 1e-3),  # the paper's
        (10_000, 2e-3),
        (4_000, 5e-3),
        (2_000, 1e-2),  # ten times fewer, ten times faster
        (1_000, 2e-2),
        (500, 2e-2),  # 40e-3 is cut
        (1, 2e-2),
        (40_000, 1e-3),  # more iterations do not slow it down
    ],
)
def test_fewer_iterations_learn_as_many_times_faster_up_to_a_limit(iterations: int, rate: float) -> None:
    assert Reconstruct(iterations=iterations).rounding_learning_rate == pytest.approx(rate, rel=1e-12)


def test_a_recipe_bounds_how_fast_rounding_is_learned() -> None:
    assert Reconstruct(iterations=200, max_rounding_learning_rate=2e-3).rounding_learning_rate == 2e-3
    assert Reconstruct(iterations=20_000, max_rounding_learning_rate=2e-3).rounding_learning_rate == 1e-3
    with pytest.raises(RecipeError, match="max_rounding_learning_rate > 0"):
        Reconstruct(max_rounding_learning_rate=0)


def test_the_last_rule_that_speaks_of_a_key_wins_key_by_key() -> None:
    recipe = Recipe(
        "mine",
        rules=(
            Rule("*", weight_bits=4, activation_bits=8),
            Rule("text.*", activation_bits=6, activation_granularity="token"),
            Rule("text.blocks.*.mlp.*", weight_bits=8),
            Rule("text.blocks.1.*", weight_bits=32),
        ),
    )
    cases = {
        "image.blocks.0.mlp.fc1": (4, 8, "tensor"),
        "text.projection": (4, 6, "token"),
        "text.blocks.0.mlp.fc2": (8, 6, "token"),
        "text.blocks.1.mlp.fc2": (32, 6, "token"),
        "text.blocks.11.mlp.fc2": (8, 6, "token"),
        "Text.projection": (4, 8, "tensor"),  # patterns mind case
    }
    for site, (weight, activation, granularity) in cases.items():
        said = (recipe.bits(site, "weight_bits"), recipe.bits(site, "activation_bits"), recipe.granularity(site))
        assert said == (weight, activation, granularity), site


def test_a_site_of_which_no_rule_speaks_stays_float() -> None:
    recipe = Recipe("mine", rules=(Rule("image.*", weight_bits=4),))
    assert recipe.bits("image.pixels", "activation_bits") == 32
    assert recipe.bits("text.projection", "weight_bits") == 32
    assert Recipe("mine").granularity("text.projection") == "tensor"


def test_a_later_rule_for_all_covers_an_earlier_exception() -> None:
    recipe = Recipe("mine", rules=(Rule("text.projection", weight_bits=8), Rule("*", weight_bits=4)))
    assert recipe.bits("text.projection", "weight_bits") == 4


@pytest.mark.parametrize(
    ("settings", "setting", "reason"),
    [
        ({"placement": "inputs"}, "placement = 'inputs'", "a tensor has one scale for all its readers"),
        ({"attention": "rules"}, "attention = 'rules'", "the products of attention are float or 8 bits"),
        ({"weight_symmetric": False}, "weight_symmetric = false", "zero point 0"),
        ({"activation_symmetric": True}, "activation_symmetric = true", "runtimes rewrite signed activations"),
        *(({"rules": (Rule("*", b),)}, f"weight_bits = {b}", "have 4, 6 or 8 bits") for b in (2, 3, 5, 7)),
        *(({"rules": (Rule("*", 8, b),)}, f"activation_bits = {b}", "have 6 or 8 bits") for b in (2, 3, 4, 5, 7)),
        ({"rules": (Rule("*", 8, 8, "token"),)}, "activation_granularity", "one input scale"),
        ({"rules": (Rule("*", 8, 8, "channel"),)}, "activation_granularity", "one input scale"),
        ({"rules": (Rule("*", 8), Rule("text.*", 3))}, "weight_bits = 3", "have 4, 6 or 8 bits"),
    ],
)
def test_what_no_integer_kernel_honours_is_not_deployable(settings: dict[str, Any], setting: str, reason: str) -> None:
    Recipe("mine", **settings)  # as a simulation it may be
    with pytest.raises(RecipeError) as error:
        Recipe("mine", deployable=True, **settings)
    assert str(error.value).startswith(f"recipe mine: {setting} is not deployable: ")
    assert reason in str(error.value)
    assert str(error.value).endswith("; set deployable = false")


@pytest.mark.parametrize("weight_bits", [None, 4, 6, 8, 32])
@pytest.mark.parametrize("activation_bits", [None, 6, 8, 32])
@pytest.mark.parametrize("attention", ["float", "int8"])
def test_what_integer_kernels_honour_is_deployable(
    weight_bits: int | None, activation_bits: int | None, attention: Any
) -> None:
    rules = (Rule("*", weight_bits, activation_bits, "tensor"),)
    assert Recipe("mine", deployable=True, attention=attention, rules=rules).runs_as == "integers"


@pytest.mark.parametrize(
    ("recipe", "runs_as"),
    [
        (Recipe("m"), "storage"),
        (Recipe("m", rules=(Rule("*", 4),)), "storage"),
        (Recipe("m", rules=(Rule("*", 4, 32),)), "storage"),
        (Recipe("m", rules=(Rule("*", 4, 8),)), "simulation"),
        (Recipe("m", rules=(Rule("*", 4), Rule("text.*", None, 8))), "simulation"),
        (Recipe("m", attention="int8", rules=(Rule("*", 4),)), "simulation"),
        (Recipe("m", deployable=True), "integers"),
    ],
)
def test_what_becomes_of_a_recipe(recipe: Recipe, runs_as: str) -> None:
    assert recipe.runs_as == runs_as


@pytest.mark.parametrize("name", RUNS_AS)
def test_the_shipped_recipes_run_as_the_design_says(name: str) -> None:
    assert load_recipe(name).runs_as == RUNS_AS[name]


@pytest.mark.parametrize(
    ("name", "site", "weight", "activation"),
    [
        ("w8a8", "image.patch_embedding", 8, 8),
        ("w8a8", "text.blocks.0.mlp.fc1", 8, 8),
        ("w6a6", "image.blocks.0.mlp.fc1", 6, 6),
        ("w6a6", "image.pixels", 6, 8),
        ("w6a6", "text.blocks.0.mlp.fc1", 8, 8),
        ("w4a8", "image.blocks.0.attention.q", 4, 8),
        ("w4a8", "text.blocks.11.attention.out", 4, 8),
        ("w4a8", "image.layer4.2.conv3", 4, 8),
        ("w4a8", "image.patch_embedding", 8, 8),
        ("w4a8", "image.stem.conv1", 8, 8),
        ("w4a8", "image.pool.v", 8, 8),
        ("w4a8", "image.projection", 8, 8),
        ("w4a8", "text.projection", 8, 8),
        ("w4a8", "text.token_embedding", 8, 8),
        ("w4a8", "text.blocks.0.mlp.fc2", 4, 8),
        ("w4", "image.blocks.0.mlp.fc1", 4, 32),
        ("w8", "image.blocks.0.mlp.fc1", 8, 32),
        ("w4a4", "image.blocks.0.mlp.fc1", 4, 4),
        ("w3a3", "image.blocks.0.mlp.fc1", 3, 3),
        ("w2a3", "image.blocks.0.mlp.fc1", 2, 3),
    ],
)
def test_the_shipped_recipes_give_these_bits(name: str, site: str, weight: int, activation: int) -> None:
    recipe = load_recipe(name)
    assert (recipe.bits(site, "weight_bits"), recipe.bits(site, "activation_bits")) == (weight, activation)


@pytest.mark.parametrize("bits", [-4, 0, 1, 9, 16, 31, 33])
@pytest.mark.parametrize("key", ["weight_bits", "activation_bits"])
def test_bits_out_of_reach_are_refused(key: str, bits: int) -> None:
    with pytest.raises(RecipeError, match=rf"\[rule\]: need {key} from 2 to 8, or 32 for float; got {bits}"):
        Rule("*", **{key: bits})


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        (Synthesize, {"images": 0}),
        (Synthesize, {"batch": 0}),
        (Synthesize, {"steps": -1}),
        (Synthesize, {"learning_rate": 0.0}),
        (Synthesize, {"temperature": 0.0}),
        (Synthesize, {"temperature": -0.1}),
        (Calibrate, {"texts": 0}),
        (Calibrate, {"layernorm_folds": (0.5, -0.1)}),
        (Calibrate, {"layernorm_folds": ()}),
        (Reconstruct, {"iterations": 0}),
        (Calibrate, {"outliers": 0.5}),
        (Reconstruct, {"batch": 0}),
        (Reconstruct, {"warm_up": 1.0}),
        (Reconstruct, {"warm_up": -0.1}),
        (Reconstruct, {"keep_quantized": 0.0}),
        (Reconstruct, {"keep_quantized": 1.1}),
    ],
)
def test_a_setting_out_of_reach_is_refused_by_section(section: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"\[{section.__name__.lower()}\]: need .*{next(iter(settings))}"):
        section(**settings)


def test_the_ends_of_what_is_possible_are_accepted() -> None:
    assert Synthesize(images=1, batch=1, steps=0).steps == 0
    assert Calibrate(texts=1, layernorm_folds=(0.0, 1.0)).texts == 1
    assert Reconstruct(iterations=1, batch=1, warm_up=0.0, keep_quantized=1.0).iterations == 1
    assert (Rule("*", 2, 8).weight_bits, Rule("*", 32, 2).activation_bits) == (2, 2)

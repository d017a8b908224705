import dataclasses
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d4c.errors import RecipeError, UnknownNameError
from d4c.recipes import (
    Calibrate,
    Recipe,
    Reconstruct,
    Rule,
    Synthesize,
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_names,
)
from d4c.recipes.files import introduction

BITS = st.sampled_from([None, 2, 3, 4, 5, 6, 7, 8, 32])
POSITIVE = st.floats(1e-12, 1e12)
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
RULES = st.builds(
    Rule, TEXT, BITS, BITS, st.sampled_from([None, "tensor", "channel", "token"])
)  # the pattern may be any text
FOLDS = st.lists(st.floats(0, 1), min_size=1, max_size=3).map(tuple)
RECIPES = st.builds(
    Recipe,
    name=TEXT,
    deployable=st.just(False),
    placement=st.sampled_from(["tensors", "inputs"]),
    attention=st.sampled_from(["float", "int8", "rules"]),
    weight_symmetric=st.booleans(),
    activation_symmetric=st.booleans(),
    synthesize=st.builds(
        Synthesize, images=st.integers(1, 10**6), steps=st.integers(0, 9), learning_rate=POSITIVE,
        temperature=POSITIVE, momentum_drift=st.booleans(), parametrization=st.just("pixels"),
        start=st.sampled_from(["noise", "dead_leaves"]),
    ),
    calibrate=st.builds(Calibrate, texts=st.integers(1, 10**6), layernorm_folds=FOLDS),
    reconstruct=st.builds(
        Reconstruct, iterations=st.integers(1, 10**6), image_scale_learning_rate=st.floats(0, 1),
        unit=st.sampled_from(["layer", "block", "auto"]), keep_quantized=st.floats(1e-6, 1),
    ),
    rules=st.lists(RULES, max_size=3).map(tuple),
)  # fmt: skip


def refused(text: str, *overrides: str) -> str:
    """What a recipe is refused with, which is one line that names it."""
    with pytest.raises(RecipeError) as error:
        parse_recipe("mine", text, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_list_is_read_item_by_item() -> None:
    assert parse_recipe("mine", "[calibrate]\nlayernorm_folds = [0, 0.5]\n").calibrate.layernorm_folds == (0.0, 0.5)
    assert "needs a list" in refused("[calibrate]\nlayernorm_folds = 0.5\n")
    assert "needs float" in refused('[calibrate]\nlayernorm_folds = ["half"]\n')
    assert "exponents from 0 to 1" in refused("", "calibrate.layernorm_folds=[]")


def test_the_recipes_of_the_design_are_shipped() -> None:
    assert {"w8a8", "w6a6", "w4a8", "w8", "w4", "w4a4", "w3a3", "w2a3"} <= set(recipe_names())
    assert recipe_names() == sorted(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_dumping_then_parsing_is_the_identity(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.rules
    assert parse_recipe(name, dump_recipe(recipe)) == recipe
    assert dump_recipe(parse_recipe(name, dump_recipe(recipe))) == dump_recipe(recipe)


@settings(deadline=None, max_examples=80)
@given(recipe=RECIPES)
def test_dumping_then_parsing_is_the_identity(recipe: Recipe) -> None:
    assert parse_recipe(recipe.name, dump_recipe(recipe)) == recipe


def test_the_dump_spells_out_every_key() -> None:
    text = dump_recipe(load_recipe("w8"))
    for section in (Synthesize, Calibrate, Reconstruct):
        assert f"[{section.__name__.lower()}]" in text
        assert all(f"\n{field.name} = " in text for field in dataclasses.fields(section))


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_introduces_itself_in_one_line(name: str) -> None:
    first = resources.files("d4c.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# {introduction(name)}"
    assert introduction(name).endswith(".")


def test_an_empty_recipe_is_all_defaults() -> None:
    assert parse_recipe("mine", "") == Recipe("mine")


def test_every_key_is_read() -> None:
    recipe = parse_recipe(
        "mine",
        """
        attention = "int8"
        activation_symmetric = true
        [synthesize]
        images = 7
        learning_rate = 1  # a whole number where a fraction is due
        valid_pixels = false
        [calibrate]
        range = "minmax"
        [reconstruct]
        method = "none"
        [[rule]]
        match = "image.*"
        weight_bits = 4
        [[rule]]
        match = "text.*"
        activation_granularity = "token"
        """,
    )
    assert recipe == Recipe(
        "mine",
        attention="int8",
        activation_symmetric=True,
        synthesize=Synthesize(images=7, learning_rate=1.0, valid_pixels=False),
        calibrate=Calibrate(range="minmax"),
        reconstruct=Reconstruct(method="none"),
        rules=(Rule("image.*", 4), Rule("text.*", activation_granularity="token")),
    )
    assert type(recipe.synthesize.learning_rate) is float


def test_a_key_of_adaround_without_its_method_is_refused_and_not_ignored() -> None:
    says = 'recipe w4a8 [reconstruct]: iterations is of AdaRound; set method = "adaround" too'
    with pytest.raises(RecipeError) as error:
        load_recipe("w4a8", ["reconstruct.refits=2", "reconstruct.iterations=9"])
    assert str(error.value) == says
    assert load_recipe("w4a8", ["reconstruct.iterations=9", "reconstruct.method=adaround"]).reconstruct.iterations == 9
    assert load_recipe("paper-w4a8", ["reconstruct.iterations=9"]).reconstruct.method == "adaround"
    assert parse_recipe("again", dump_recipe(load_recipe("w4a8"))).reconstruct == load_recipe("w4a8").reconstruct


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("deployible = true", "unknown key 'deployible'; did you mean 'deployable'?"),
        ("[synthesize]\nimage = 3", "[synthesize]: unknown key 'image'; did you mean 'images'?"),
        ("[synthesise]\nimages = 3", "unknown key 'synthesise'"),
        ("[calibrate]\ntext = 3", "[calibrate]: unknown key 'text'; did you mean 'texts'?"),
        ("[reconstruct]\niteration = 3", "[reconstruct]: unknown key 'iteration'; did you mean 'iterations'?"),
        ('[[rule]]\nmatch = "*"\nweight_bit = 4', "[[rule]]: unknown key 'weight_bit'; did you mean 'weight_bits'?"),
        ('[[rules]]\nmatch = "*"\nweight_bits = 4', "unknown key 'rules'; did you mean 'rule'?"),
        ("rules = []", "unknown key 'rules'; did you mean 'rule'?"),
        ("[synthesize]\nzzz = 3", "[synthesize]: unknown key 'zzz'. Known: method, images"),
    ],
)
def test_an_unknown_key_names_the_nearest(text: str, nearest: str) -> None:
    assert nearest in refused(text)
    assert "recipe mine" in refused(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[synthesize]\nmethod = "d4"', "method cannot be 'd4'; did you mean 'd4c'?"),
        ('[calibrate]\nrange = "minmix"', "range cannot be 'minmix'; did you mean 'minmax'?"),
        ('placement = "input"', "placement cannot be 'input'; did you mean 'inputs'?"),
        ("attention = 8", "attention cannot be 8"),
        (
            '[[rule]]\nmatch = "*"\nactivation_granularity = "tokens"',
            "activation_granularity cannot be 'tokens'; did you mean 'token'? Known: tensor, channel, token",
        ),
        ('[[rule]]\nmatch = "*"\nactivation_granularity = 3', "activation_granularity cannot be 3"),
    ],
)
def test_an_unknown_choice_names_the_nearest(text: str, says: str) -> None:
    assert says in refused(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[synthesize]\nimages = 1.5", "images needs int, not 1.5"),
        ('[synthesize]\nimages = "many"', "images needs int, not 'many'"),
        ("[synthesize]\nimages = true", "images needs int, not True"),
        ('[synthesize]\nlearning_rate = "fast"', "learning_rate needs float, not 'fast'"),
        ("[synthesize]\nlearning_rate = inf", "learning_rate"),
        ("[synthesize]\ntotal_variation = nan", "total_variation"),
        ("[synthesize]\nvalid_pixels = 1", "valid_pixels needs bool, not 1"),
        ("deployable = 'yes'", "deployable needs bool, not 'yes'"),
        ('[[rule]]\nmatch = "*"\nweight_bits = "4"', "weight_bits needs int, not '4'"),
        ('[[rule]]\nmatch = "*"\nweight_bits = 4.0', "weight_bits needs int, not 4.0"),
        ("[[rule]]\nmatch = 3", "match needs str, not 3"),
        ("[[rule]]\nweight_bits = 4", "missing 1 required positional argument: 'match'"),
        ("synthesize = 3", "write a table, not 3"),
        ("rule = [3]", "write a table, not 3"),
        ('[rule]\nmatch = "*"', "rules are written as [[rule]] tables"),
        ('[[rule]]\nmatch = "*"\nweight_bits = 9', "weight_bits from 2 to 8, or 32 for float; got 9"),
        ("images = [", "not TOML"),
        ("[synthesize]\nimages = 1\nimages = 2", "not TOML"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(text: str, says: str) -> None:
    assert says in refused(text)


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones() -> None:
    overrides = (
        "synthesize.images=64", "synthesize.images = 65", "synthesize.method=noise", 'calibrate.range="minmax"',
        "reconstruct.refits=0", "synthesize.valid_pixels=false", "synthesize.learning_rate=1e-2", "deployable=false",
    )  # fmt: skip
    recipe, plain = load_recipe("w4a8", overrides), load_recipe("w4a8")
    assert recipe == dataclasses.replace(
        plain,
        deployable=False,
        synthesize=dataclasses.replace(
            plain.synthesize, images=65, method="noise", valid_pixels=False, learning_rate=0.01
        ),
        calibrate=dataclasses.replace(plain.calibrate, range="minmax"),
        reconstruct=dataclasses.replace(plain.reconstruct, refits=0),
    )
    assert load_recipe("w4a8") == plain


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("synthesize.images", "write section.key=value"),
        ("=3", "write section.key=value"),
        ("synthesize.=3", "write section.key=value"),
        ("synthesize.image=3", "unknown key 'image'; did you mean 'images'?"),
        ("synthesise.images=3", "unknown key 'synthesise'; did you mean 'synthesize'?"),
        ("synthesize.images.more=3", "unknown key 'synthesize.images'; did you mean 'synthesize'?"),
        ("deployible=true", "unknown key 'deployible'; did you mean 'deployable'?"),
        ("synthesize.images=many", "images needs int, not 'many'"),
        ("synthesize.images=", "images needs int, not ''"),
        ("synthesize.images=0", "images, batch >= 1"),
        ("synthesize=3", "write a table, not 3"),
        ("rule=3", "rules are written as [[rule]] tables"),
        ("rules=3", "unknown key 'rules'"),
        ("rule.weight_bits=3", "unknown key 'rule'"),
        ("placement=inputs", "placement = 'inputs' is not deployable"),
    ],
)
def test_an_override_that_cannot_be_is_refused(override: str, says: str) -> None:
    assert says in refused("deployable = true", override)


def test_an_override_of_a_section_that_is_no_table_is_refused() -> None:
    assert "write a table, not 3" in refused("synthesize = 3", "synthesize.images=4")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown recipe 'w4a9'; did you mean 'w4a8'\?") as error:
        load_recipe("w4a9")
    assert all(name in str(error.value) for name in recipe_names())


def test_a_file_is_read_by_path_and_named_after_it(tmp_path: Path) -> None:
    path = tmp_path / "größer 猫 \N{GRINNING FACE}.toml"
    path.write_text('# ä\n[[rule]]\nmatch = "*"\nweight_bits = 8\n', encoding="utf-8")
    recipe = load_recipe(str(path), ["synthesize.images=2"])
    assert recipe == Recipe(path.stem, synthesize=Synthesize(images=2), rules=(Rule("*", 8),))
    assert parse_recipe(recipe.name, dump_recipe(recipe)) == recipe


def test_the_resolved_recipe_can_be_used_as_a_file(tmp_path: Path) -> None:
    recipe = load_recipe("w4a8", ["synthesize.steps=1"])
    (tmp_path / "w4a8.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "w4a8.toml")) == recipe


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes("# größer\n".encode("latin-1"))
    for name in ("none", "folder", "latin"):
        path = str(tmp_path / f"{name}.toml")
        with pytest.raises(RecipeError) as error:
            load_recipe(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)

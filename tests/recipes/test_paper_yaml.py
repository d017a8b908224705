import dataclasses
from pathlib import Path

import pytest
import yaml

from d4c.errors import RecipeError
from d4c.recipes import Recipe, load_recipe, recipe_names
from d4c.recipes.paper_yaml import TEXT_MLP

# Section 6 of the method: the paper's file for W4A8, key by key.
CONFIG48 = {
    "a_qconfig": {"quantizer": "LSQFakeQuantize", "observer": "MSEObserver", "bit": 8, "symmetric": False,
                  "ch_axis": -1},
    "w_qconfig": {"quantizer": "AdaRoundFakeQuantize", "observer": "MSEObserver", "bit": 4, "symmetric": False,
                  "ch_axis": 0},
    "calibrate": {"visual": 128, "text": 512},
    "recon": {"visual_batch_size": 32, "text_batch_size": 32, "visual_scale_lr": 4.0e-5, "text_scale_lr": 4.0e-6,
              "warm_up": 0.2, "weight": 0.01, "iters": 20000, "b_range": [20, 2], "keep_gpu": True,
              "round_mode": "learned_hard_sigmoid", "drop_prob": 1.0},
}  # fmt: skip


def write(path: Path, **changes: object) -> str:
    """The W4A8 file with keys of sections changed, `section__key=value`; None removes one."""
    data = {section: dict(keys) for section, keys in CONFIG48.items()}
    for name, value in changes.items():
        section, key = name.split("__")
        data[section].pop(key)
        if value is not None:
            data[section][key] = value
    path.write_text(yaml.safe_dump(data))
    return str(path)


def same(left: Recipe, right: Recipe) -> bool:
    return dataclasses.replace(left, name="") == dataclasses.replace(right, name="")


@pytest.mark.parametrize(("digits", "recipe"), [("48", "paper-w4a8"), ("66", "paper-w6a6"), ("88", "paper-w8a8")])
def test_a_shipped_file_is_the_recipe_of_its_bits(digits: str, recipe: str) -> None:
    found = load_recipe(f"./exp/config{digits}.yaml")  # no such file here: the shipped copy
    assert same(found, load_recipe(recipe))
    assert found.name == f"config{digits}"
    assert recipe in recipe_names()


def test_a_file_of_the_papers_loads_unchanged(tmp_path: Path) -> None:
    assert same(load_recipe(write(tmp_path / "mine.yaml")), load_recipe("paper-w4a8"))


def test_every_key_reaches_the_recipe(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.yaml", a_qconfig__bit=5, a_qconfig__observer="MinMaxObserver", a_qconfig__symmetric=True,
        w_qconfig__bit=3, w_qconfig__observer="MinMaxObserver", w_qconfig__symmetric=True, calibrate__visual=64,
        calibrate__text=100, recon__visual_batch_size=8, recon__text_batch_size=8, recon__visual_scale_lr=1e-3,
        recon__text_scale_lr=2e-3, recon__warm_up=0.5, recon__weight=0.1, recon__iters=70, recon__b_range=[9, 3],
        recon__drop_prob=0.5,
    )  # fmt: skip
    recipe = load_recipe(path)
    assert (recipe.weight_symmetric, recipe.activation_symmetric) == (True, True)
    assert (recipe.synthesize.images, recipe.calibrate.texts) == (64, 100)
    assert (recipe.calibrate.range, recipe.calibrate.weight_range) == ("minmax", "minmax")
    learned = recipe.reconstruct
    assert (learned.batch, learned.iterations, learned.warm_up, learned.rounding_weight) == (8, 70, 0.5, 0.1)
    assert (learned.image_scale_learning_rate, learned.text_scale_learning_rate) == (1e-3, 2e-3)
    assert (learned.beta_start, learned.beta_end, learned.keep_quantized) == (9, 3, 0.5)
    assert recipe.bits("image.blocks.0.mlp.fc1", "weight_bits") == 3
    assert recipe.bits("image.blocks.0.attention.q_out", "activation_bits") == 5


@pytest.mark.parametrize("name", ["paper-w4a8", "paper-w6a6", "paper-w8a8"])
def test_the_text_mlp_has_8_bits_and_the_ends_are_float(name: str) -> None:
    recipe = load_recipe(name)
    for key in ("weight_bits", "activation_bits"):
        assert recipe.bits("text.blocks.3.mlp.fc2", key) == 8
        for site in ("image.patch_embedding", "image.stem.conv1", "image.layer1.0.shortcut.conv", "image.projection",
                     "text.projection", "text.token_embedding"):  # fmt: skip
            assert recipe.bits(site, key) == 32
    assert recipe.runs_as == "simulation"
    assert any(rule.match == TEXT_MLP for rule in recipe.rules)


def test_roots_are_followed_and_children_win(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "root.yaml", recon__iters=7)
    child = tmp_path / "deep" / "child.yaml"
    child.write_text(yaml.safe_dump({"root": "../root.yaml", "calibrate": {"visual": 9, "text": 5}, "unknown": 1}))
    recipe = load_recipe(str(child))
    assert (recipe.synthesize.images, recipe.reconstruct.iterations) == (9, 7)


def test_overrides_change_what_a_file_says(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml")
    assert load_recipe(path, ["reconstruct.iterations=3"]).reconstruct.iterations == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recon__iters": None}, "recon.iters is missing"),
        ({"a_qconfig__quantizer": "FixedFakeQuantize"}, "a_qconfig.quantizer"),
        ({"w_qconfig__observer": "AvgMSEObserver"}, "AvgMSEObserver"),
        ({"w_qconfig__ch_axis": -1}, "w_qconfig.ch_axis"),
        ({"recon__round_mode": "nearest"}, "recon.round_mode"),
        ({"recon__text_batch_size": 16}, "batch"),
        ({"w_qconfig__bit": 9}, "2 to 8"),
        ({"w_qconfig__bit": "many"}, "wrong kind"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path / "mine.yaml", **changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["a: [", "7", "root: mine.yaml"])
def test_broken_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError) as error:
        load_recipe(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.yaml"))

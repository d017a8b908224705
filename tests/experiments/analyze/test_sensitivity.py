from pathlib import Path

import pytest
import torch
from torch import Tensor

from d4c import calibrate
from d4c.experiments.analyze.cells import Cells
from d4c.experiments.analyze.sensitivity import (
    Study,
    layer_depth,
    layer_kind,
    measure,
    rank_correlation,
    returned_share,
    rms,
    share_by_kind,
    summarize,
    uniform_scheme,
)
from d4c.images import ImageSet
from d4c.models import Clip, sites_of, wrap
from d4c.models.folding import fold_batchnorm
from d4c.quantizers.scheme import Scheme
from d4c.recipes import Recipe, Rule, load_recipe

QUICK = ["calibrate.range=minmax"]  # no search over 49,408 rows of the token embedding


@pytest.mark.parametrize(
    ("layer", "kind", "depth"),
    [
        ("image.blocks.3.attention.q", "image attention.q", "3"),
        ("text.blocks.11.mlp.fc2", "text mlp.fc2", "11"),
        ("image.layer2.1.conv3", "image conv3", "2.1"),
        ("image.layer4.0.shortcut.conv", "image shortcut.conv", "4.0"),
        ("image.stem.conv1", "image stem.conv1", ""),
        ("image.patch_embedding", "image patch_embedding", ""),
        ("text.token_embedding", "text token_embedding", ""),
    ],
)
def test_a_layers_kind_and_depth(layer: str, kind: str, depth: str) -> None:
    assert (layer_kind(layer), layer_depth(layer)) == (kind, depth)


def test_root_mean_square_by_hand() -> None:
    assert rms([3.0, 4.0]) == pytest.approx(12.5**0.5)


def test_share_returned_by_hand() -> None:
    assert returned_share(0.5, 0.3) == pytest.approx(1 - 0.36)
    assert returned_share(0.5, 0.5) == 0
    assert returned_share(0.5, 1.0) == -3
    assert returned_share(0.0, 0.0) == 0


def test_squares_divide_over_kinds_tower_by_tower() -> None:
    errors = {
        "image.blocks.0.mlp.fc1": 3.0,
        "image.blocks.1.mlp.fc1": 4.0,
        "image.projection": 5.0,
        "text.projection": 1.0,
    }
    found = share_by_kind(errors)
    assert found["image mlp.fc1"] == {"root_sum_square": 5.0, "share": 0.5}
    assert found["image projection"]["share"] == 0.5
    assert found["text projection"]["share"] == 1.0


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 300]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # ranks 0 1 2 3 against 1 0 2 3: 1 - 6 (1 + 1) / (4 x 15)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(0.8)
    assert rank_correlation([1], [1]) == 0


def test_uniform_scheme_names_every_layer_and_its_own_input(tiny_clip: Clip) -> None:
    sites = sites_of(tiny_clip)
    scheme = uniform_scheme(sites, 3, Recipe("r"), inputs=True)
    assert set(scheme.weights) == set(sites.layers)
    assert set(scheme.inputs) == set(sites.layers) - {"text.token_embedding"}
    assert not scheme.tensors
    assert {f.grid.num_bits for f in (*scheme.weights.values(), *scheme.inputs.values())} == {3}
    assert not uniform_scheme(sites, 3, Recipe("r"), inputs=False).inputs


def study_of(clip: Clip, pixels: Tensor, ids: Tensor, recipe: Recipe) -> Study:
    return Study(
        fold_batchnorm(clip),
        recipe,
        ImageSet.unlabelled(pixels[:4], "test"),
        ids,
        {"image": pixels, "text": ids},
        {"image": {"a": slice(0, 4), "real": slice(4, 8)}, "text": {"texts": slice(0, len(ids))}},
        {"image": ["a"], "text": ["texts"]},
    )


@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet"])
def test_cells_agree_with_models_wrapped_as_a_whole(
    model: str, pixels: Tensor, ids: Tensor, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = load_recipe("w4a8", QUICK)
    study = study_of(request.getfixturevalue(model), pixels, ids, recipe)
    result = measure(study, [4], Cells(tmp_path, []), [], lambda *_: None)
    clip, sites = study.clip, sites_of(study.clip)
    layer = next(name for name in sites.layers if name.endswith(("blocks.1.mlp.fc1", "layer2.0.conv2")))

    uniform = uniform_scheme(sites, 4, recipe, inputs=True)
    ranges = calibrate.run(clip, study.images, ids, uniform, recipe.calibrate)
    alone = Scheme({layer: uniform.weights[layer]}, {}, {layer: uniform.inputs[layer]})
    assert result["one"]["weight+input"]["4"][layer]["sets"]["a"] == pytest.approx(
        centred(clip, wrap(clip, alone, ranges), pixels[:4]), rel=1e-4
    )

    scheme = Scheme(*(getattr(_resolved(recipe, clip), part) for part in ("weights", "tensors", "inputs")))
    ranges = calibrate.run(clip, study.images, ids, scheme, recipe.calibrate)
    assert result["all"]["image"]["error"] == pytest.approx(
        centred(clip, wrap(clip, scheme, ranges), pixels[:4]), rel=1e-4
    )
    rest = Scheme({name: f for name, f in scheme.weights.items() if name != layer}, scheme.tensors, {})
    assert result["without"][layer]["sets"]["real"] == pytest.approx(
        centred(clip, wrap(clip, rest, ranges), pixels[4:]), rel=1e-4
    )


def test_a_layer_whose_weight_is_float_again_still_reads_integers(
    tiny_clip: Clip, pixels: Tensor, ids: Tensor, tmp_path: Path
) -> None:
    rules = (Rule("*", weight_bits=32), Rule("image.blocks.1.mlp.fc1", weight_bits=8, activation_bits=3))
    recipe = Recipe("one", placement="inputs", rules=rules)
    result = measure(study_of(tiny_clip, pixels, ids, recipe), [], Cells(tmp_path, []), [], lambda *_: None)
    (without,) = result["without"].values()
    assert without["error"] == pytest.approx(result["all"]["image"]["error"], rel=0.05)  # all of it is the input's


def _resolved(recipe: Recipe, clip: Clip) -> Scheme:
    from d4c.quantizers.scheme import resolve_scheme

    return resolve_scheme(recipe, sites_of(clip))


@torch.no_grad()
def centred(clip: Clip, changed: Clip, pixels: Tensor) -> float:
    z = clip.encode_image(pixels)
    return float((changed.encode_image(pixels) - z).norm() / (z - z.mean(dim=0)).norm())


def test_more_bits_lose_less_and_the_summary_ranks(
    tiny_clip: Clip, pixels: Tensor, ids: Tensor, tmp_path: Path
) -> None:
    study = study_of(tiny_clip, pixels, ids, load_recipe("w4a8", QUICK))
    seen: list[tuple[int, int]] = []
    result = measure(study, [8, 3], Cells(tmp_path, []), [], lambda _, done, total: seen.append((done, total)))
    kinds = summarize(result, "real")["kinds"]
    assert all(
        kinds["weight"]["3"][kind]["root_sum_square"] > 4 * about["root_sum_square"]
        for kind, about in kinds["weight"]["8"].items()
    )
    assert seen[-1][0] == seen[-1][1]
    ranked = summarize(result, None)["bottlenecks"]["image"]
    assert [e["returned"] for e in ranked] == sorted((e["returned"] for e in ranked), reverse=True)
    assert ranked[0]["bits"] in (4, 8)
    assert -1 <= summarize(result, "real")["rank_agreement"]["weight"]["3"] <= 1


def test_measured_layers_are_recalled(tiny_clip: Clip, pixels: Tensor, ids: Tensor, tmp_path: Path) -> None:
    study = study_of(tiny_clip, pixels, ids, load_recipe("w4a8", QUICK))

    class Crash(BaseException):
        pass

    def crash(_: str, done: int, __: int) -> None:
        if done == 9:
            raise Crash

    with pytest.raises(Crash):
        measure(study, [4], Cells(tmp_path, []), [], crash)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(kept) == 2 + 9  # both towers as a whole, and nine layers
    again = measure(study, [4], Cells(tmp_path, []), [], lambda *_: None)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert again == measure(study, [4], Cells(tmp_path / "whole", []), [], lambda *_: None)

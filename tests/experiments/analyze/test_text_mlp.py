from pathlib import Path

import pytest
import torch
from torch import Tensor

from d4c.experiments.analyze.cells import Cells
from d4c.experiments.analyze.text_mlp import TextStudy, measure, with_mlp_bits
from d4c.images import ImageSet
from d4c.models import Clip, sites_of
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import load_recipe

QUICK = ["calibrate.range=minmax"]  # no search over 49,408 rows of the token embedding


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_only_the_mlps_weights_change(tiny_clip: Clip, bits: int) -> None:
    sites = sites_of(tiny_clip)
    before, after = (resolve_scheme(r, sites) for r in (load_recipe("w4a8"), with_mlp_bits(load_recipe("w4a8"), bits)))
    for layer, weight in after.weights.items():
        expected = bits if ".mlp." in layer and layer.startswith("text.") else before.weights[layer].grid.num_bits
        assert weight.grid.num_bits == expected
    assert after.tensors == before.tensors


def test_float_is_thirty_two_bits(tiny_clip: Clip) -> None:
    scheme = resolve_scheme(with_mlp_bits(load_recipe("w4a8"), 32), sites_of(tiny_clip)).of_tower("text")
    assert not [layer for layer in scheme.weights if ".mlp." in layer]
    assert all(site.startswith("text.") for site in (*scheme.weights, *scheme.tensors))


@pytest.mark.parametrize("bits", [32, 4])
def test_inputs_of_layers_with_float_weights_are_float_where_each_layer_has_its_own(tiny_clip: Clip, bits: int) -> None:
    scheme = resolve_scheme(with_mlp_bits(load_recipe("w4a4"), bits), sites_of(tiny_clip)).of_tower("text")
    assert any(".mlp." in layer for layer in scheme.weights) == (bits == 4)
    assert {layer for layer in scheme.inputs if ".mlp." in layer} == {n for n in scheme.weights if ".mlp." in n}


def test_fewer_bits_lose_more_and_learning_is_reported(
    tiny_clip: Clip, pixels: Tensor, ids: Tensor, tmp_path: Path
) -> None:
    images = ImageSet.unlabelled(pixels, "test")
    study = TextStudy(tiny_clip, load_recipe("w4a8", QUICK), images, ids, ids.flip(0), 2, None, 0)
    result = measure(study, [8, 3], Cells(tmp_path, []), [], lambda *_: None)
    assert list(result["nearest"]) == ["32", "8", "3"]
    errors = {bits: cell["centred_error"] for bits, cell in result["nearest"].items()}
    assert errors["3"] > errors["8"] > 0
    assert errors["8"] == pytest.approx(errors["32"], rel=0.2)
    assert 0 <= result["learned"]["3"]["codes_changed"] <= 1
    assert "acc1" not in result["learned"]["3"]


def test_the_model_stays_as_it_was(tiny_clip: Clip, pixels: Tensor, ids: Tensor, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in tiny_clip.state_dict().items()}
    study = TextStudy(tiny_clip, load_recipe("w4a8", QUICK), ImageSet.unlabelled(pixels, "t"), ids, ids, 1, None, 0)
    measure(study, [4], Cells(tmp_path, []), [], lambda *_: None)
    assert all(torch.equal(before[name], value) for name, value in tiny_clip.state_dict().items())

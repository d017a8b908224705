from pathlib import Path

import pytest
from torch import Tensor

from d4c.experiments.analyze.cells import Cells
from d4c.experiments.analyze.transfer import TransferStudy, measure, relative_to_own
from d4c.images import ImageSet
from d4c.models import Clip, sites_of
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import load_recipe

QUICK = ["calibrate.range=minmax"]


def test_errors_relative_to_the_judging_sets_own_by_hand() -> None:
    errors = {"a": {"a": 0.2, "b": 0.9}, "b": {"a": 0.3, "b": 0.6}}
    found = relative_to_own(errors)
    assert found["a"] == {"a": 1.0, "b": pytest.approx(1.5)}
    assert found["b"] == {"a": pytest.approx(1.5), "b": 1.0}


def test_only_the_image_tower_is_quantized(tiny_clip: Clip) -> None:
    scheme = resolve_scheme(load_recipe("w4a4"), sites_of(tiny_clip)).of_tower("image")
    assert scheme.weights
    assert all(site.startswith("image.") for site in (*scheme.weights, *scheme.tensors, *scheme.inputs))


def test_ranges_from_too_faint_images_transfer_badly(
    tiny_clip: Clip, pixels: Tensor, ids: Tensor, tmp_path: Path
) -> None:
    sets = {"loud": ImageSet.unlabelled(pixels, "t"), "faint": ImageSet.unlabelled(0.01 * pixels, "t")}
    study = TransferStudy(tiny_clip, sets, ids, None)
    result = measure(study, {"w8a8": load_recipe("w8a8", QUICK)}, Cells(tmp_path, []), [], lambda *_: None)["w8a8"]
    assert result["faint"]["errors"]["loud"] > 1.2 * result["loud"]["errors"]["loud"]


def test_judging_images_are_not_those_that_calibrated(
    tiny_clip: Clip, pixels: Tensor, ids: Tensor, tmp_path: Path
) -> None:
    other = pixels.clone()
    other[1::2] = other[1::2].flip(0)  # only images that judge change places
    recipes = {"w4a8": load_recipe("w4a8", QUICK)}
    found = []
    for i, x in enumerate((pixels, other)):
        study = TransferStudy(tiny_clip, {"s": ImageSet.unlabelled(x, "t")}, ids, None)
        result = measure(study, recipes, Cells(tmp_path, [i]), [], lambda *_: None)
        found.append(result["w4a8"]["s"]["errors"]["s"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)

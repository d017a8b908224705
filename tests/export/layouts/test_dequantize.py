import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import RESNET, SIGLIP, VIT, random_clip
from d4c.artifact import read_artifact
from d4c.artifact.architecture import ClipConfig, ResNetConfig
from d4c.errors import RecipeError
from d4c.export import dequantized
from d4c.export.dequantize import input_site
from d4c.models import sites_of
from d4c.models.quantized import QuantizedClip
from d4c.package import thaw

Artifacts = Callable[[str, str], Path]
DEEP = dataclasses.replace(RESNET, image=ResNetConfig(32, 4, (2, 1, 3, 2), 4))


@pytest.mark.parametrize("config", [VIT, SIGLIP, RESNET, DEEP], ids=["vit", "siglip", "resnet", "deep resnet"])
def test_every_layer_reads_the_site_that_the_model_says(config: ClipConfig) -> None:
    sites = sites_of(random_clip(config)).inputs
    assert {layer: input_site(config, layer) for layer in sites} == sites


def parameters(quantized: QuantizedClip) -> dict[str, torch.Tensor]:
    """What the simulation computes with, by canonical name; grids are left out."""
    grids = (".scale", ".zero_point")
    return {
        n.replace(".weight.values", ".weight"): t for n, t in quantized.state_dict().items() if not n.endswith(grids)
    }


@pytest.mark.parametrize(("kind", "recipe"), [("vit", "w4a8"), ("resnet", "w4a8"), ("resnet", "w8a8"), ("vit", "w4")])
def test_weights_and_biases_are_the_numbers_of_the_simulation(artifacts: Artifacts, kind: str, recipe: str) -> None:
    artifact = read_artifact(artifacts(kind, recipe))
    source, expected = dequantized(artifact), parameters(thaw(artifact))
    assert set(source.arrays) == set(expected)
    for name, array in source.arrays.items():
        assert array.dtype == np.float32, name
        assert np.array_equal(array, expected[name].numpy()), name
    assert (source.weights, source.tensors, source.has_int4) == ({}, {}, False)
    assert (source.recipe, source.folder) == (recipe, str(artifact.folder))


def test_a_simulation_is_refused(artifacts: Artifacts) -> None:
    with pytest.raises(RecipeError, match="recipe w4a4 runs as simulation"):
        dequantized(read_artifact(artifacts("vit", "w4a4")))

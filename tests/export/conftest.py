"""Small models as artifacts, in memory, with the simulation that each promises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from d4c import calibrate
from d4c.artifact import Artifact
from d4c.export.source import Source, source_of
from d4c.images import ImageSet
from d4c.models import Clip, QuantizedClip, sites_of, wrap
from d4c.models.folding import fold_batchnorm
from d4c.package import freeze, thaw, thaw_integers
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import Calibrate, Recipe, load_recipe


@dataclass(frozen=True)
class Case:
    """One quantized model.

    Args:
        simulation: the artifact thawed; integers: the same in whole numbers; pixels: [8, 3, 32, 32]; ids: [text, 77].
    """

    source: Source
    simulation: QuantizedClip
    integers: QuantizedClip
    pixels: Tensor
    ids: Tensor


def in_memory(clip: Clip, recipe: Recipe, pixels: Tensor, ids: Tensor) -> Artifact:
    folded = fold_batchnorm(clip)
    scheme = resolve_scheme(recipe, sites_of(folded))
    images = ImageSet.unlabelled(pixels, "p")
    quantized = wrap(folded, scheme, calibrate.run(folded, images, ids, scheme, Calibrate(range="minmax")))
    arrays, config = freeze(quantized, recipe)
    manifest = {"source": clip.source, "fingerprint": clip.fingerprint, "content_sha256": "0" * 64}
    return Artifact(Path("out"), arrays, config, "", manifest, clip.preprocess, clip.tokenizer)


def make_case(clip: Clip, recipe: str, pixels: Tensor) -> Case:
    ids = torch.from_numpy(clip.tokenizer(["a dog", "a photo of a large red house by the sea", "b", "two cats"]))
    artifact = in_memory(clip, load_recipe(recipe), pixels, ids)
    return Case(source_of(artifact), thaw(artifact), thaw_integers(artifact), pixels, ids)


RECIPES = ["w8a8", "w6a6", "w4a8"]


@pytest.fixture(scope="session", params=[(kind, recipe) for kind in ("tiny_clip", "tiny_resnet") for recipe in RECIPES],
                ids=lambda param: "-".join(param))  # fmt: skip
def case(request: pytest.FixtureRequest, pixels: Tensor) -> Case:
    kind, recipe = request.param
    return make_case(request.getfixturevalue(kind), recipe, pixels)


@pytest.fixture(scope="session", params=RECIPES)
def vit_case(request: pytest.FixtureRequest, tiny_clip: Clip, pixels: Tensor) -> Case:
    return make_case(tiny_clip, request.param, pixels)


@pytest.fixture(scope="session", params=RECIPES)
def resnet_case(request: pytest.FixtureRequest, tiny_resnet: Clip, pixels: Tensor) -> Case:
    return make_case(tiny_resnet, request.param, pixels)


@pytest.fixture(scope="session")
def siglip_case(tiny_siglip: Clip, pixels: Tensor) -> Case:
    return make_case(tiny_siglip, "w4a8", pixels)


def run_graph(model: onnx.ModelProto, *values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Everything a graph puts out, by name; values in the order of its inputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {given.name: value for given, value in zip(model.graph.input, values, strict=True)}
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def centred(found: NDArray[Any], reference: NDArray[Any]) -> float:
    spread = np.linalg.norm(reference - reference.mean(axis=0))
    return float(np.linalg.norm(found - reference) / spread)

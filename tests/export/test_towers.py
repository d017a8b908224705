"""Graphs against the simulation of the same artifact, and float graphs against the float model."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from d4c.artifact.architecture import ClipConfig
from d4c.errors import ExportError, RecipeError
from d4c.export.checks.exactness import with_inner_values
from d4c.export.checks.graph_layers import GraphReader
from d4c.export.towers import combined_graph, image_graph, text_graph, text_length_is_fixed
from d4c.models import Clip
from d4c.pipeline.exporting import float_source
from d4c.recipes import load_recipe
from export.conftest import Case, centred, run_graph

CLOSE = 2e-3  # a code or two on the edge; a lost bias or a wrong scale is ten times more


def error(found: np.ndarray, case: Case, kind: str) -> float:
    """Against the simulation in float32 or in whole numbers, whichever is nearer.

    These two part by a code where a sum lies on the edge, at a place that depends on the processor: of eight images one
    is enough for 7e-3.
    """
    inputs = case.pixels if kind == "image" else case.ids
    simulations = (getattr(model, f"encode_{kind}")(inputs).numpy() for model in (case.simulation, case.integers))
    return min(centred(found, simulation) for simulation in simulations)


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_integer_towers_compute_what_the_simulation_does(case: Case, storage: str) -> None:
    (images,) = run_graph(image_graph(case.source, storage=storage), case.pixels.numpy()).values()
    assert error(images, case, "image") < CLOSE
    (texts,) = run_graph(text_graph(case.source, storage=storage), case.ids.numpy()).values()
    assert error(texts, case, "text") < CLOSE


def test_resnets_are_whole_numbers_to_the_pool(resnet_case: Case) -> None:
    case = resnet_case
    (images,) = run_graph(image_graph(case.source, storage="int8"), case.pixels.numpy()).values()
    assert centred(images, case.integers.encode_image(case.pixels).numpy()) < 1e-5


def test_siglip_pools_by_attention_and_takes_whole_texts(siglip_case: Case) -> None:
    case = siglip_case
    (images,) = run_graph(image_graph(case.source, storage="int4"), case.pixels.numpy()).values()
    assert error(images, case, "image") < CLOSE
    model = text_graph(case.source, storage="int4")
    assert text_length_is_fixed(case.source)
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 77
    (texts,) = run_graph(model, case.ids.numpy()).values()
    assert error(texts, case, "text") < CLOSE


@pytest.mark.parametrize("kind", ["tiny_clip", "tiny_resnet", "tiny_siglip"])
def test_float_towers_are_the_float_model(kind: str, request: pytest.FixtureRequest, pixels: torch.Tensor) -> None:
    clip: Clip = request.getfixturevalue(kind)
    source = float_source(clip)
    (images,) = run_graph(image_graph(source, storage="float"), pixels.numpy()).values()
    np.testing.assert_allclose(images, clip.encode_image(pixels).numpy(), atol=2e-5)
    ids = clip.tokenizer(["a dog", "a photo of a large red house"])
    (texts,) = run_graph(text_graph(source, storage="float"), ids).values()
    np.testing.assert_allclose(texts, clip.encode_text(torch.from_numpy(ids)).numpy(), atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "mean"},
        {"pooling": "mean", "class_token": False},
        {"pooling": "mean", "norm_after_pooling": True},
        {"pre_norm": False, "layer_scale": True, "activation": "gelu"},
        {"image_size": 40, "patch_bias": True},  # eight columns of pixels are left over
    ],
)
def test_other_architectures_are_written_too(changes: dict[str, object], tiny_clip: Clip) -> None:
    from conftest import random_clip

    config = tiny_clip.config
    vit = dataclasses.replace(config.image, **changes)
    clip = random_clip(ClipConfig(config.embed_dim, vit, config.text))
    x = torch.randn(3, 3, vit.image_size, vit.image_size, generator=torch.Generator().manual_seed(0))
    (images,) = run_graph(image_graph(float_source(clip), storage="float"), x.numpy()).values()
    np.testing.assert_allclose(images, clip.encode_image(x).numpy(), atol=2e-5)


def test_padding_length_and_company_change_nothing(vit_case: Case) -> None:
    model, ids = text_graph(vit_case.source, storage="int8"), vit_case.ids.numpy()
    (together,) = run_graph(model, ids).values()
    for row, text in enumerate(ids):
        length = int(text.argmax()) + 1
        (alone,) = run_graph(model, text[None, :length]).values()
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)
    filled = np.where(np.arange(77) > ids.argmax(axis=1)[:, None], ids.max(), ids)  # padded with the end token
    np.testing.assert_array_equal(next(iter(run_graph(model, filled).values())), together)


@pytest.mark.parametrize("id_type", ["int32", "int64"])
def test_names_types_and_length_one_are_as_asked(vit_case: Case, id_type: str) -> None:
    source = vit_case.source
    model = text_graph(source, storage="int8", input="text", output="embedding", normalize=True, id_type=id_type)
    (texts,) = run_graph(model, vit_case.ids.numpy().astype(id_type)).values()
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("text", "embedding")
    assert (model.opset_import[0].version, model.ir_version) == (21, 10)


def test_the_combined_graph_gives_normalised_embeddings_and_logits(siglip_case: Case, vit_case: Case) -> None:
    for case in (siglip_case, vit_case):
        ids = case.ids.numpy()
        model = combined_graph(case.source, storage="int8")
        assert [i.name for i in model.graph.input] == ["input_ids", "pixel_values", "attention_mask"]
        found = run_graph(model, ids, case.pixels.numpy(), np.ones_like(ids))
        logits = case.simulation(case.pixels, case.ids).numpy()
        np.testing.assert_allclose(found["logits_per_image"], logits, atol=0.3)  # a code moves a cosine by 2e-3
        np.testing.assert_array_equal(found["logits_per_text"], found["logits_per_image"].T)
        np.testing.assert_allclose(np.linalg.norm(found["image_embeds"], axis=1), 1, atol=1e-6)


def test_four_bits_are_two_to_a_byte(vit_case: Case) -> None:
    if not vit_case.source.has_int4:
        assert image_graph(vit_case.source, storage="int4") == image_graph(vit_case.source, storage="int8")
        return
    model = image_graph(vit_case.source, storage="int4")
    packed = [t for t in model.graph.initializer if t.data_type == TensorProto.INT4]
    assert len(packed) == 2 * 6  # q, k, v, out, fc1, fc2 of two blocks
    assert all(len(t.raw_data) * 2 == np.prod(t.dims) for t in packed)


def test_a_zero_point_behind_a_relu_is_refused(resnet_case: Case) -> None:
    arrays = {**resnet_case.source.arrays, "image.layer1.0.conv1_out.zero_point": np.ones(1, np.float32)}
    with pytest.raises(ExportError, match=r"image\.layer1\.0\.conv1_out: zero point 1 behind a ReLU"):
        image_graph(dataclasses.replace(resnet_case.source, arrays=arrays), storage="int8")


def test_simulations_have_no_integer_graph(tiny_clip: Clip, pixels: torch.Tensor, ids: torch.Tensor) -> None:
    from d4c.export.source import source_of
    from export.conftest import in_memory

    with pytest.raises(RecipeError, match="recipe w4a4 runs as simulation, not in integers"):
        source_of(in_memory(tiny_clip, load_recipe("w4a4"), pixels, ids))


def test_a_missing_array_is_named(vit_case: Case) -> None:
    arrays = {k: v for k, v in vit_case.source.arrays.items() if k != "image.blocks.0.norm1.bias"}
    with pytest.raises(ExportError, match=r"image\.blocks\.0\.norm1\.bias is missing"):
        image_graph(dataclasses.replace(vit_case.source, arrays=arrays), storage="int8")


def test_graphs_are_the_same_every_time(resnet_case: Case) -> None:
    first, second = (image_graph(resnet_case.source, storage="int4").SerializeToString() for _ in range(2))
    assert first == second
    onnx.checker.check_model(onnx.load_from_string(first), full_check=True)


def test_average_pools_add_codes_and_round_once(resnet_case: Case) -> None:
    source = resnet_case.source
    model = with_inner_values(image_graph(source, storage="int8"))
    values = run_graph(model, resnet_case.pixels.numpy())
    pools = [layer for layer in GraphReader(model).layers() if layer.is_mean]
    # the stem's, and one before conv3 and one in the shortcut of the stages that halve the picture
    assert len(pools) == 7
    for layer in pools:
        x = values[layer.input_codes].astype(np.int64)
        b, c, h, w = x.shape
        sums = x.reshape(b, c, h // 2, 2, w // 2, 2).sum(axis=(3, 5))  # [batch, channel, height, width]
        assert not source.arrays[f"{layer.site}.zero_point"].any()  # behind a ReLU
        assert layer.output_site is not None
        scale, out_scale = source.arrays[f"{layer.site}.scale"], source.arrays[f"{layer.output_site}.scale"]
        codes = np.clip(np.rint(sums * (scale / (4 * out_scale))), 0, 255)
        assert (values[layer.output] == codes).mean() > 0.999
        assert np.abs(values[layer.output] - codes).max() <= 1

"""What every layout promises, read with the runtimes themselves."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from torch import Tensor

import d4c
from d4c.artifact import Exported, check_files, read_exported
from d4c.inputs import Preprocess, Tokenizer
from export.layouts.models import centred_error, unit

Exports = Callable[..., tuple[Path, Exported]]
Session = Callable[[Path], object]
OURS = {"README.md", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
HUGGINGFACE = {
    f"onnx/{name}{suffix}.onnx" for name in ("vision_model", "text_model", "model") for suffix in ("_quantized", "_q4")
}
FILES = {
    "onnx": {"image.onnx", "text.onnx"},
    "openvino": {"image.xml", "image.bin", "text.xml", "text.bin"},
    "huggingface": {"config.json", "special_tokens_map.json", *HUGGINGFACE},
    "immich": {"config.json", "visual/model.onnx", "visual/preprocess_cfg.json", "textual/model.onnx",
               "textual/tokenizer.json", "textual/tokenizer_config.json"},
    "fastembed": {"image/model.onnx", "image/config.json", "image/preprocessor_config.json", "text/model.onnx",
                  "text/config.json", "text/tokenizer.json", "text/tokenizer_config.json",
                  "text/special_tokens_map.json"},
    "open_clip": {"open_clip_config.json", "open_clip_model.safetensors"},
}  # fmt: skip
GRAPHS = [layout for layout in FILES if layout != "open_clip"]
NAMES = {
    "onnx": ("pixel_values", "image_embeds", "input_ids", "text_embeds", "int64", False),
    "openvino": ("pixel_values", "image_embeds", "input_ids", "text_embeds", "int64", False),
    "huggingface": ("pixel_values", "image_embeds", "input_ids", "text_embeds", "int64", False),
    "immich": ("image", "embedding", "text", "embedding", "int32", True),
    "fastembed": ("pixel_values", "image_embeds", "input_ids", "text_embeds", "int64", True),
    "open_clip": ("image", "image_features", "text", "text_features", "int64", False),
}


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_folder_holds_what_the_layout_names_and_says_so(exports: Exports, kind: str, layout: str) -> None:
    folder, exported = exports(kind, layout)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == FILES[layout] | OURS | {"d4c.json"}
    assert set(exported.sha256) == files - {"d4c.json"}
    assert read_exported(folder) == exported
    check_files(folder, exported)
    assert sorted(path.name for path in folder.parent.iterdir() if path.name.endswith(".tmp")) == []


@pytest.mark.parametrize("layout", FILES)
def test_d4c_json_describes_the_model_and_where_it_came_from(
    exports: Exports, artifacts: Callable[[str, str], Path], layout: str
) -> None:
    artifact = artifacts("vit", "w4a8")
    _, exported = exports("vit", layout)
    manifest = json.loads((artifact / "manifest.json").read_text())
    image, text = exported.image, exported.text
    assert (image.input, image.output, text.input, text.output, exported.id_type, exported.normalized) == NAMES[layout]
    assert (exported.layout, exported.recipe, exported.embed_dim) == (layout, "w4a8", 16)
    assert (exported.fingerprint, exported.content_sha256) == (manifest["fingerprint"], manifest["content_sha256"])
    assert exported.source == manifest["source"]
    assert exported.artifact == str(artifact)
    assert exported.logit_scale == pytest.approx(np.exp(4.6), rel=1e-6)
    assert exported.logit_bias is None
    assert exported.template == "a photo of a {c}."
    assert exported.fixed_length == (layout == "open_clip")


@pytest.mark.parametrize("layout", GRAPHS)
def test_graphs_have_the_names_types_and_free_axes_that_d4c_json_tells(exports: Exports, layout: str) -> None:
    folder, exported = exports("vit", layout)
    for tower, element, shape in (
        (exported.image, "f32", [-1, 3, 32, 32]),
        (exported.text, f"i{exported.id_type[3:]}", [-1, -1]),
    ):
        for file in tower.files.values():
            model = openvino.Core().read_model(folder / file)
            (input_,), (output,) = model.inputs, model.outputs
            assert (input_.any_name, output.any_name) == (tower.input, tower.output)
            assert input_.element_type.get_type_name() == element
            assert [dim.get_length() if dim.is_static else -1 for dim in input_.partial_shape] == shape


@pytest.mark.parametrize("recipe", ["w4a8", "float"])
@pytest.mark.parametrize("layout", [name for name in GRAPHS if name != "openvino"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_graphs_embed_as_the_model_does(
    exports: Exports, artifacts: Callable[[str, str], Path], session: Session, pixels: Tensor, ids: Tensor, kind: str,
    layout: str, recipe: str,
) -> None:  # fmt: skip
    folder, exported = exports(kind, layout, recipe)
    quantized = recipe != "float"
    place = artifacts(kind, "w4a8")
    clip = d4c.load_quantized(place) if quantized else d4c.load(f"local-dir:{place.parent / kind}")
    expected = {"image": clip.encode_image(pixels).numpy(), "text": clip.encode_text(ids).numpy()}
    inputs = {"image": pixels.numpy(), "text": ids.numpy().astype(exported.id_type)}
    for name, tower in (("image", exported.image), ("text", exported.text)):
        rows = [
            session(folder / file).run([tower.output], {tower.input: inputs[name]})[0] for file in tower.files.values()
        ]  # fmt: skip
        lengths = np.linalg.norm(rows[0], axis=1)
        assert np.allclose(lengths, 1, atol=1e-5) == exported.normalized
        target = unit(expected[name]) if exported.normalized else expected[name]
        # A value that lies between two codes may fall to either side, by the order of float sums.
        assert centred_error(rows[0], target) < (0.02 if quantized else 1e-5)
        assert all(np.array_equal(row, rows[0]) for row in rows)  # however weights lie in the file


@pytest.mark.parametrize(("recipe", "storage"), [("w4a8", "int4"), ("w8a8", "int8"), ("float", "float")])
def test_weights_lie_in_the_smallest_form_there_is(exports: Exports, recipe: str, storage: str) -> None:
    folder, exported = exports("vit", "onnx", recipe)
    assert {*exported.image.files} == {*exported.text.files} == {storage}
    kinds = {t.data_type for t in onnx.load(folder / "image.onnx").graph.initializer}
    assert (onnx.TensorProto.INT4 in kinds) == (storage == "int4")
    assert (onnx.TensorProto.INT8 in kinds) == (storage != "float")


@pytest.mark.parametrize("layout", FILES)
def test_inputs_are_prepared_from_the_folder_as_the_artifact_does(
    exports: Exports, artifacts: Callable[[str, str], Path], layout: str
) -> None:
    folder, _ = exports("vit", layout)
    artifact = artifacts("vit", "w4a8")
    assert Preprocess.from_folder(folder) == Preprocess.from_folder(artifact)
    texts = ["a photo of a cat.", "Straße &amp; café", "word " * 100]
    assert np.array_equal(Tokenizer.from_folder(folder)(texts), Tokenizer.from_folder(artifact)(texts))


def test_openvino_embeds_as_the_float_model_does(
    exports: Exports, artifacts: Callable[[str, str], Path], pixels: Tensor, ids: Tensor
) -> None:
    folder, _ = exports("vit", "openvino", "float")
    clip = d4c.load(f"local-dir:{artifacts('vit', 'w4a8').parent / 'vit'}")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    for file, given, expected in (
        ("image.xml", pixels.numpy(), clip.encode_image(pixels).numpy()),
        ("text.xml", ids.numpy(), clip.encode_text(ids).numpy()),
    ):
        found = openvino.Core().compile_model(folder / file, "CPU", settings)([given])[0]
        assert centred_error(found, expected) < 1e-5

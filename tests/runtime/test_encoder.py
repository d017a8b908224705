"""An exported folder against the same towers in numpy, and every way in which one can be broken."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from d4c.artifact import ExportedTower, read_exported
from d4c.artifact.exported import EXPORTED
from d4c.errors import D4CError, ExportError, MissingExtraError, ModelFileError, UnknownNameError, UsageError
from d4c.runtime import open_encoder
from runtime.small_graphs import (
    MATRIX,
    SIZE,
    TABLE,
    describe,
    image_model,
    image_tower,
    text_model,
    text_tower,
    write_export,
)

LIBRARIES = ("export", "openvino_export")
TEXTS = ["a dog", "an old red car that stands in the rain in front of a house", "", "sky " * 200, "x"]


def some_pixels(count: int) -> Any:
    return np.random.default_rng(1).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("library", LIBRARIES)
def test_embeddings_are_those_of_the_towers(library: str, request: pytest.FixtureRequest) -> None:
    encoder = open_encoder(request.getfixturevalue(library), threads=1)
    pixels, ids = some_pixels(5), encoder.tokenizer(TEXTS)
    for found, expected in (
        (encoder.encode_image(pixels), image_tower(pixels)),
        (encoder.encode_text(ids), text_tower(ids)),
    ):
        assert (found.dtype, found.shape) == (np.float32, (5, 8))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)  # sums of up to 77 numbers


@pytest.mark.parametrize("openvino", [False, True])
def test_ids_are_cast_and_stay_whole_where_the_folder_says_so(openvino: bool, tmp_path: Path) -> None:
    encoder = open_encoder(write_export(tmp_path / "e", openvino=openvino, id_type="int32", fixed_length=True))
    ids = encoder.tokenizer(TEXTS)
    assert ids.dtype == np.int64
    np.testing.assert_allclose(encoder.encode_text(ids), text_tower(ids, fixed_length=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_company_does_not_change_an_embedding(library: str, request: pytest.FixtureRequest) -> None:
    encoder = open_encoder(request.getfixturevalue(library), threads=1)
    pixels, ids = some_pixels(8), encoder.tokenizer(TEXTS)
    together, texts = encoder.encode_image(pixels), encoder.encode_text(ids)
    for i in range(8):
        np.testing.assert_allclose(encoder.encode_image(pixels[i : i + 1])[0], together[i], rtol=0, atol=1e-5)
    for i in range(len(TEXTS)):
        np.testing.assert_allclose(encoder.encode_text(ids[i : i + 1])[0], texts[i], rtol=0, atol=1e-5)


def test_batches_are_joined_in_order(export: Path) -> None:
    encoder = open_encoder(export)
    pixels = some_pixels(2 * encoder.batch + 3)
    np.testing.assert_allclose(encoder.encode_image(pixels), image_tower(pixels), rtol=0, atol=1e-5)
    texts = [f"picture {i}" for i in range(encoder.batch + 1)]
    ids = encoder.tokenizer(texts)
    np.testing.assert_allclose(encoder.encode_text(ids), text_tower(ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_in_nothing_out(library: str, request: pytest.FixtureRequest) -> None:
    encoder = open_encoder(request.getfixturevalue(library))
    assert encoder.encode_image(some_pixels(0)).shape == (0, 8)
    assert encoder.encode_text(np.empty((0, 77), np.int64)).shape == (0, 8)


def test_results_are_not_overwritten_by_the_next_call(openvino_export: Path) -> None:
    encoder = open_encoder(openvino_export)
    pixels = some_pixels(2)
    first = encoder.image.graph.run("pixel_values", pixels[:1], "image_embeds")
    kept = first.copy()
    encoder.image.graph.run("pixel_values", pixels[1:], "image_embeds")
    assert np.array_equal(first, kept)


def test_storage_chooses_the_file(export: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(export, tmp_path / "e")
    onnx.save(image_model(matrix=2 * MATRIX), folder / "image4.onnx")
    shutil.copy(folder / "text.onnx", folder / "text4.onnx")
    image = ExportedTower({"int8": "image.onnx", "int4": "image4.onnx"}, "pixel_values", "image_embeds")
    text = ExportedTower({"int8": "text.onnx", "int4": "text4.onnx"}, "input_ids", "text_embeds")
    describe(folder, dataclasses.replace(read_exported(folder), image=image, text=text))
    pixels = some_pixels(1)
    for storage, factor in ((None, 1), ("int8", 1), ("int4", 2)):
        found = open_encoder(folder, storage).encode_image(pixels)
        np.testing.assert_allclose(found, factor * image_tower(pixels), rtol=0, atol=1e-4)
    with pytest.raises(UnknownNameError, match="Known: int4, int8"):
        open_encoder(folder, "int2")


def refused(folder: Path, words: str, kind: type[D4CError] = ExportError, **arguments: Any) -> None:
    """Opening ends with one line that names the folder."""
    with pytest.raises(kind) as error:
        open_encoder(folder, **arguments)
    assert "\n" not in str(error.value)
    assert words in str(error.value)
    assert str(folder) in str(error.value)


def test_what_arguments_show_is_the_users_error(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder", UsageError)
    (tmp_path / "a").mkdir()
    refused(tmp_path / "a", "not an exported folder")
    (tmp_path / "a" / "manifest.json").write_text("{}")
    refused(tmp_path / "a", "d4c export", UsageError)


def test_fewer_than_one_thread_is_the_users_error(export: Path) -> None:
    with pytest.raises(UsageError, match="threads are counted from 1; not 0"):
        open_encoder(export, threads=0)


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_a_library_that_is_not_installed_is_named_with_its_remedy(
    library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_export(tmp_path / "e", openvino=library == "openvino")
    monkeypatch.setitem(sys.modules, library, None)
    extra = {"onnxruntime": "onnx"}.get(library, library)
    with pytest.raises(MissingExtraError, match=rf"d4c\[{extra}\]"):
        open_encoder(folder)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:40] + bytes([data[40] ^ 64]) + data[41:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut, "flipped": flipped, "empty": lambda _: b"", "text": lambda _: b"hello", "xml": lambda _: b"<a></a>",
}  # fmt: skip
NAMES = {"export": ("image.onnx", "text.onnx"), "openvino_export": ("image.xml", "text.xml", "text.bin")}


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in NAMES for name in NAMES[library]])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_whether_its_hash_tells_or_not(
    library: str, name: str, damage: str, tmp_path: Path, request: pytest.FixtureRequest, capfd: Any
) -> None:
    folder = shutil.copytree(request.getfixturevalue(library), tmp_path / "e")
    (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes()))
    refused(folder, f"{name} is damaged")
    describe(folder, read_exported(folder))
    if damage != "flipped" or library == "export":  # else another weight or name of a layer: only the hash knows
        refused(folder, str(folder / name.replace(".bin", ".xml")))
    assert capfd.readouterr() == ("", "")  # neither library says anything by itself


def test_a_missing_file_and_one_outside_are_refused(export: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(export, tmp_path / "e")
    (folder / "text.onnx").unlink()
    refused(folder, "text.onnx is missing")
    about = json.loads((folder / EXPORTED).read_text())
    about["sha256"]["../x"] = ""
    (folder / EXPORTED).write_text(json.dumps(about))
    (folder / "text.onnx").write_bytes((export / "text.onnx").read_bytes())
    refused(folder, "../x, which is not in the folder")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("runtime", "tensorrt"), ("id_type", "float16"), ("fixed_length", "no"), ("normalized", 1), ("embed_dim", 0),
        ("embed_dim", "8"), ("logit_scale", None), ("logit_scale", float("nan")), ("logit_bias", "x"),
        ("template", "a photo"), ("template", None),
    ],
)  # fmt: skip
def test_an_entry_of_the_description_that_makes_no_sense_is_named(
    export: Path, tmp_path: Path, setting: str, value: Any
) -> None:
    folder = shutil.copytree(export, tmp_path / "e")
    describe(folder, dataclasses.replace(read_exported(export), **{setting: value}))
    refused(folder, f"{EXPORTED} has a wrong {setting}")


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 99}, {"image": {}}, {"image": None}, {"sha256": None}, {"sha256": {}}, {"more": 1},
        {"image": {"files": {}, "input": "pixel_values", "output": "image_embeds"}},
        {"image": {"files": {"int8": 3}, "input": "pixel_values", "output": "image_embeds"}},
        {"image": {"files": "image.onnx", "input": "pixel_values", "output": "image_embeds"}},
    ],
)  # fmt: skip
def test_a_description_that_cannot_be_one_is_one_line(change: dict[str, Any], export: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(export, tmp_path / "e")
    (folder / EXPORTED).write_text(json.dumps({**json.loads((folder / EXPORTED).read_text()), **change}))
    refused(folder, "")
    for content in (b"", b"[]", b"{", b"\xff\xfe"):
        (folder / EXPORTED).write_bytes(content)
        refused(folder, f"{EXPORTED} cannot be read")


@pytest.mark.parametrize("openvino", [False, True])
@pytest.mark.parametrize(
    ("graph", "words"),
    [
        ({"image": image_model("features")}, "no output is called image_embeds, as d4c.json says; there is features"),
        ({"image": text_model()}, "no input is called pixel_values, as d4c.json says; there is input_ids"),
        ({"image": image_model(size=64)}, "input pixel_values is [any, 3, 64, 64]; d4c.json says [any, 3, 32, 32]"),
        ({"image": image_model(matrix=MATRIX[:, :7])}, "output image_embeds is [any, 7]; d4c.json says [any, 8]"),
        ({"text": text_model("int32")}, "input input_ids is int32; d4c.json says int64"),
        ({"text": text_model(fixed_length=True)}, "input input_ids is [any, 77]; d4c.json says [any, any]"),
        ({"text": text_model(table=TABLE.astype(np.float64))}, "; d4c.json says float32"),
    ],
)
def test_a_graph_that_is_not_what_the_description_says_is_refused(
    openvino: bool, graph: dict[str, onnx.ModelProto], words: str, tmp_path: Path
) -> None:
    refused(write_export(tmp_path / "e", openvino=openvino, **graph), words)


def test_a_graph_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    folder = write_export(tmp_path / "e", image=image_model(matrix=MATRIX[:-3]))
    refused(folder, "image.onnx: not a graph that onnxruntime can run: ")


def test_a_graph_that_wants_more_than_one_input_is_refused(tmp_path: Path) -> None:
    model = text_model()
    model.graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "length"]))
    refused(write_export(tmp_path / "e", text=model), "2 inputs; d4c.json says one, input_ids")


@pytest.mark.parametrize("openvino", [False, True])
def test_what_is_not_finite_is_never_returned(openvino: bool, tmp_path: Path) -> None:
    matrix = MATRIX.copy()
    matrix[0, 0] = np.nan
    encoder = open_encoder(write_export(tmp_path / "e", image=image_model(matrix=matrix), openvino=openvino))
    with pytest.raises(ExportError, match=r"image\..*not finite"):
        encoder.encode_image(some_pixels(2))


def test_a_tokenizer_with_more_words_than_the_graph_is_one_line(tmp_path: Path, capfd: Any) -> None:
    encoder = open_encoder(write_export(tmp_path / "e", text=text_model(table=TABLE[:1000])))
    with pytest.raises(ExportError, match=r"text\.onnx: fails to run: ") as error:
        encoder.encode_text(encoder.tokenizer("a dog"))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_inputs_that_cannot_be_read_are_one_line(name: str, export: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(export, tmp_path / "e")
    (folder / name).write_text("{}")
    describe(folder, read_exported(folder))
    refused(folder, "cannot read", ModelFileError)


def test_threads_reach_the_libraries_and_openvino_computes_in_float32(export: Path, openvino_export: Path) -> None:
    onnx_graph: Any = open_encoder(export, threads=1).image.graph
    assert onnx_graph._session.get_session_options().intra_op_num_threads == 1
    openvino_graph: Any = open_encoder(openvino_export, threads=1).image.graph
    assert openvino_graph._model.get_property("INFERENCE_NUM_THREADS") == 1
    assert "float32" in str(openvino_graph._model.get_property("INFERENCE_PRECISION_HINT"))

"""Planted faults must be found, by name; what is right must pass."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from d4c.artifact.exported import Exported, ExportedTower, Storage
from d4c.errors import ExportError
from d4c.export.checks import Row
from d4c.export.checks.saturation import worst_pair
from d4c.export.openvino import save_openvino
from d4c.export.towers import image_graph, text_graph
from d4c.export.verify import check_tower
from d4c.models import Clip
from d4c.pipeline.exporting import float_source
from export.conftest import Case

Fault = Callable[[onnx.ModelProto], None]


def exported(**changes: object) -> Exported:
    about = {
        "layout": "onnx", "runtime": "onnxruntime",
        "image": ExportedTower({"int8": "image.onnx"}, "pixel_values", "image_embeds"),
        "text": ExportedTower({"int8": "text.onnx"}, "input_ids", "text_embeds"),
        "id_type": "int64", "fixed_length": False, "normalized": False, "embed_dim": 16, "logit_scale": 100.0,
        "logit_bias": None, "template": "{c}", "source": "random", "fingerprint": "f", "recipe": "w8a8",
        "content_sha256": None, "artifact": None, "sha256": {},
    }  # fmt: skip
    return Exported(**{**about, **changes})


def check(
    folder: Path, case: Case, fault: Fault | None = None, tower: str = "image", storage: Storage = "int8"
) -> list[Row]:
    model = (image_graph if tower == "image" else text_graph)(case.source, storage=storage)
    if fault is not None:
        fault(model)
    onnx.save(model, folder / f"{tower}.onnx")
    values = case.pixels.numpy() if tower == "image" else case.ids.numpy()
    about = exported(**{tower: ExportedTower({storage: f"{tower}.onnx"}, model.graph.input[0].name, f"{tower}_embeds")})
    return check_tower(folder, about, tower, storage, values, case.source)


def failures(rows: list[Row]) -> str:
    return "; ".join(f"{row.check} {row.found}" for row in rows if row.passed is False)


def replace_constant(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_what_is_right_passes(storage: Storage, case: Case, tmp_path: Path) -> None:
    for tower in ("image", "text"):
        rows = check(tmp_path, case, tower=tower, storage=storage)
        assert not failures(rows)
        assert any("QGemm" in row.found for row in rows)
        assert any("the same bits" in row.found for row in rows)
        assert any("against int64" in row.found for row in rows)


@pytest.mark.parametrize(
    "name", ["image.blocks.1.mlp.fc2.weight_scale", "image.blocks.0.attention.input.scale", "image.pooled.scale"]
)
def test_a_scale_two_percent_off_is_found(name: str, vit_case: Case, tmp_path: Path) -> None:
    rows = check(tmp_path, vit_case, lambda model: replace_constant(model, name, lambda x: (x * 1.02).astype(x.dtype)))
    assert f"differs {name}" in failures(rows)
    assert "not exact" in failures(rows)


def test_swapped_channels_are_found(resnet_case: Case, tmp_path: Path) -> None:
    name = "image.layer2.0.conv3.weight"
    rows = check(
        tmp_path, resnet_case, lambda model: replace_constant(model, name, lambda x: x[[1, 0, *range(2, len(x))]])
    )
    assert "not exact image.layer2.0.conv3:" in failures(rows)


@pytest.mark.parametrize("layer", ["image.blocks.0.attention.v", "image.blocks.1.mlp.fc1"])
def test_a_lost_bias_is_found(layer: str, vit_case: Case, tmp_path: Path) -> None:
    def lose(model: onnx.ModelProto) -> None:
        (node,) = [n for n in model.graph.node if n.name == layer]
        del node.input[2]

    found = failures(check(tmp_path, vit_case, lose))
    assert f"inputs missing {layer}" in found
    assert f"not exact {layer}:" in found


def test_layers_left_in_float_are_named(vit_case: Case, tmp_path: Path) -> None:
    def unquantize(model: onnx.ModelProto) -> None:  # onnxruntime wants a zero point in front of a Gemm
        (node,) = [n for n in model.graph.node if n.output[0] == "image.blocks.1.attention.out.weight_real"]
        del node.input[2]

    rows = check(tmp_path, vit_case, unquantize)
    assert "left in float image.blocks.1.attention.out is" in failures(rows)


def test_weights_that_saturate_are_named(vit_case: Case, tmp_path: Path) -> None:
    if vit_case.source.recipe != "w8a8":
        return

    def enlarge(codes: np.ndarray) -> np.ndarray:
        changed = codes.copy()
        changed[0, :2] = 127
        return changed

    rows = check(tmp_path, vit_case, lambda m: replace_constant(m, "image.blocks.0.mlp.fc1.weight", enlarge))
    assert "saturates image.blocks.0.mlp.fc1: " in failures(rows)
    assert str(255 * 254) in failures(rows)


def test_without_the_artifact_structure_is_checked(vit_case: Case, tmp_path: Path) -> None:
    onnx.save(image_graph(vit_case.source, storage="int8"), tmp_path / "image.onnx")
    rows = check_tower(tmp_path, exported(), "image", "int8", vit_case.pixels.numpy(), None)
    assert not failures(rows)
    assert not any("int64" in row.found for row in rows)


def test_a_float_graph_passes_as_what_it_is_and_fails_as_an_integer_one(tiny_clip: Clip, tmp_path: Path) -> None:
    model, x = image_graph(float_source(tiny_clip), storage="float"), np.zeros((1, 3, 32, 32), np.float32)
    onnx.save(model, tmp_path / "image.onnx")
    save_openvino(model, tmp_path / "image.xml")
    for runtime, file in (("onnxruntime", "image.onnx"), ("openvino", "image.xml")):
        tower = ExportedTower({"float": file}, "pixel_values", "image_embeds")
        for recipe, fails in (("float", False), ("w8a8", True)):
            rows = check_tower(
                tmp_path, exported(runtime=runtime, recipe=recipe, image=tower), "image", "float", x, None
            )
            assert bool(failures(rows)) == fails
            assert len(rows) >= 1


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a" * 20])
def test_a_file_that_is_no_graph_is_one_line(content: bytes, vit_case: Case, tmp_path: Path) -> None:
    (tmp_path / "image.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"image\.onnx"):
        check_tower(tmp_path, exported(), "image", "int8", vit_case.pixels.numpy(), vit_case.source)


def test_pairs_are_neighbours_in_the_order_of_the_kernels() -> None:
    row = np.zeros((1, 6), np.int8)
    row[0, 1:3] = 100  # columns 1 and 2 are not multiplied together
    assert worst_pair(row, 255) == (0, 25_500)
    row[0, :2] = -128
    assert worst_pair(row, 255) == (-65_280, 25_500)
    assert worst_pair(row, 63) == (-16_128, 6_300)


def test_an_odd_number_of_channels_is_paired_in_both_ways() -> None:
    codes = np.zeros((1, 3, 1, 2), np.int8)  # [out, channel, height, width]
    codes[0, 2, 0, 0] = codes[0, 0, 0, 1] = 100  # channel 2 of one position, channel 0 of the next: paired across
    assert worst_pair(codes, 255) == (0, 51_000)
    codes = np.zeros((1, 3, 1, 2), np.int8)
    codes[0, 0, 0, 1] = codes[0, 1, 0, 1] = 100  # paired within the second position only
    assert worst_pair(codes, 255) == (0, 51_000)


def test_integer_layers_of_openvino_are_counted(case: Case, tmp_path: Path) -> None:
    save_openvino(image_graph(case.source, storage="int4"), tmp_path / "image.xml")
    about = exported(runtime="openvino", image=ExportedTower({"int4": "image.xml"}, "pixel_values", "image_embeds"))
    rows = check_tower(tmp_path, about, "image", "int4", case.pixels.numpy(), case.source)
    assert not failures(rows)

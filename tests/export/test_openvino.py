"""OpenVINO's graphs beside onnxruntime's, code for code."""

from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper

from d4c.export.openvino import save_openvino, with_addends_apart
from d4c.export.towers import image_graph
from export.conftest import Case, run_graph

FIRST_SUM = "image.layer1.0.sum_out"


def test_residual_sums_add_codes(resnet_case: Case, tmp_path: Path) -> None:
    model = image_graph(resnet_case.source, storage="int8")
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(FIRST_SUM, TensorProto.FLOAT, None))
    x = resnet_case.pixels.numpy()
    (sums,) = run_graph(model, x).values()
    save_openvino(model, tmp_path / "image.xml")
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(str(tmp_path / "image.xml"), "CPU", hints)(x)[0]
    assert np.abs(sums).max() > 0
    step = resnet_case.source.arrays[f"{FIRST_SUM}.scale"].item()
    assert (np.abs(found - sums) > step / 2).mean() < 0.01


def test_addends_that_others_read_stay_as_they_are(resnet_case: Case) -> None:
    model = image_graph(resnet_case.source, storage="int8")
    before = model.SerializeToString()
    pooled = {node.input[0] for node in with_addends_apart(model).graph.node if node.op_type == "MaxPool"}
    blocks = [f"image.layer{stage}.0" for stage in (1, 2, 3, 4)]
    assert pooled == {f"{block}.{site}" for block in blocks for site in ("conv3_out", "shortcut.conv_out")}
    assert model.SerializeToString() == before
    onnx.checker.check_model(with_addends_apart(model))


def test_sums_of_floats_stay_as_they_are(vit_case: Case) -> None:
    model = image_graph(vit_case.source, storage="int8")
    assert with_addends_apart(model) == model

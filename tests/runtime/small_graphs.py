"""An exported folder with two graphs that can be followed by hand, and the same towers in numpy.

image: the picture in 4 x 4 fields, the mean of each and a matrix. text: the sum of the tokens' vectors through the end,
or where length is fixed their mean over the whole context, which padding changes.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from d4c.artifact.exported import EXPORTED, Exported, ExportedTower
from d4c.inputs import Preprocess, Tokenizer

SIZE, FIELDS, WIDTH, VOCABULARY = 32, 4, 8, 49408
_RNG = np.random.default_rng(0)
MATRIX = _RNG.normal(size=(3 * FIELDS * FIELDS, WIDTH)).astype(np.float32)
TABLE = _RNG.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
ID_TYPES = {"int32": TensorProto.INT32, "int64": TensorProto.INT64}


def image_tower(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """[image, 3, SIZE, SIZE] -> [image, WIDTH]."""
    side = SIZE // FIELDS
    fields = pixels.reshape(len(pixels), 3, FIELDS, side, FIELDS, side).mean(axis=(3, 5))
    return fields.reshape(len(pixels), -1) @ MATRIX


def text_tower(ids: NDArray[np.int64], fixed_length: bool = False) -> NDArray[np.float32]:
    """[text, token] -> [text, WIDTH]."""
    if fixed_length:
        return TABLE[ids].mean(axis=1)
    return np.stack([TABLE[row[: row.argmax() + 1]].sum(axis=0) for row in ids])


def image_model(output: str = "image_embeds", matrix: NDArray[Any] = MATRIX, size: int = SIZE) -> onnx.ModelProto:
    side = size // FIELDS
    nodes = [
        helper.make_node("AveragePool", ["pixel_values"], ["fields"], kernel_shape=[side] * 2, strides=[side] * 2),
        helper.make_node("Flatten", ["fields"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], [output]),
    ]
    given = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, size, size])
    return _model(nodes, given, output, matrix.shape[1], {"matrix": matrix})


def text_model(id_type: str = "int64", fixed_length: bool = False, table: NDArray[Any] = TABLE) -> onnx.ModelProto:
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["vectors"])]
    if fixed_length:
        nodes.append(helper.make_node("ReduceMean", ["vectors", "axis"], ["text_embeds"], keepdims=0))
    else:
        nodes += [
            helper.make_node("CumSum", ["vectors", "one"], ["sums"]),
            helper.make_node("ArgMax", ["input_ids"], ["end"], axis=1, keepdims=1),
            helper.make_node("GatherND", ["sums", "end"], ["text_embeds"], batch_dims=1),
        ]
    given = helper.make_tensor_value_info("input_ids", ID_TYPES[id_type], ["batch", 77 if fixed_length else "length"])
    axis = {"axis": np.asarray([1])} if fixed_length else {"one": np.asarray(1)}
    return _model(nodes, given, "text_embeds", table.shape[1], {"table": table, **axis})


def _model(
    nodes: list[onnx.NodeProto], given: onnx.ValueInfoProto, output: str, width: int, constants: dict[str, Any]
) -> onnx.ModelProto:
    dtype = helper.np_dtype_to_tensor_dtype(next(iter(constants.values())).dtype)  # of the matrix or the table
    result = helper.make_tensor_value_info(output, dtype, ["batch", width])
    arrays = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tower", [given], [result], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def write_export(
    folder: Path,
    *,
    image: onnx.ModelProto | None = None,
    text: onnx.ModelProto | None = None,
    openvino: bool = False,
    **settings: Any,
) -> Path:
    """Make an exported folder; `settings` are entries of d4c.json."""
    folder.mkdir(parents=True)
    Preprocess(SIZE).save(folder)
    Tokenizer.openai().save(folder)
    id_type, fixed_length = settings.get("id_type", "int64"), settings.get("fixed_length", False)
    onnx.save(image or image_model(), folder / "image.onnx")
    onnx.save(text or text_model(id_type, fixed_length), folder / "text.onnx")
    if openvino:
        for tower in ("image", "text"):
            to_openvino(folder / f"{tower}.onnx")
    suffix = "xml" if openvino else "onnx"
    exported = Exported(
        layout="onnx", runtime="openvino" if openvino else "onnxruntime",
        image=ExportedTower({"int8": f"image.{suffix}"}, "pixel_values", "image_embeds"),
        text=ExportedTower({"int8": f"text.{suffix}"}, "input_ids", "text_embeds"),
        id_type=id_type, fixed_length=fixed_length, normalized=False, embed_dim=WIDTH, logit_scale=100.0,
        logit_bias=None, template="a photo of a {c}.", source="tiny", fingerprint="0" * 64, recipe="w8a8",
        content_sha256=None, artifact=None, sha256={},
    )  # fmt: skip
    return describe(folder, dataclasses.replace(exported, **settings))


def to_openvino(path: Path) -> None:
    """Replace *.onnx by *.xml and *.bin."""
    import openvino

    openvino.save_model(openvino.convert_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
    path.unlink()


def describe(folder: Path, exported: Exported) -> Path:
    """Write d4c.json with the SHA-256 of the files as they are."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != EXPORTED)
    sums = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    content = dataclasses.replace(exported, sha256=sums).to_dict()
    (folder / EXPORTED).write_text(json.dumps(content), encoding="utf-8")
    return folder

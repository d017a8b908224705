"""The forms of a model that are measured, and how each is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from d4c.artifact.exported import Storage
from d4c.artifact.work import appearing_whole
from d4c.errors import ExportError, MissingExtraError, UnknownNameError, UsageError
from d4c.experiments.bench.inputs import Calibration
from d4c.experiments.bench.rivals import RIVALS, rival
from d4c.experiments.bench.session import Graph
from d4c.export.openvino import save_openvino
from d4c.export.source import Source
from d4c.export.towers import image_graph, text_graph

TOWERS = ("image", "text")
REFERENCE = "fp32"
OWN: Mapping[str, Storage] = {REFERENCE: "float", "int8": "int8", "int4": "int4"}
OPENVINO = {f"openvino-{name}": storage for name, storage in OWN.items()}
VARIANTS = {
    REFERENCE: "the float model, written as the artifact is",
    "int8": "the artifact, a byte a weight",
    "int4": "the artifact, weights of four bits two a byte",
    "static": "onnxruntime's quantize_static, its default operations",
    "static-linear": "onnxruntime's quantize_static, Conv, Gemm and MatMul alone",
    "dynamic": "onnxruntime's quantize_dynamic",
    **{name: f"{name.removeprefix('openvino-')} in OpenVINO" for name in OPENVINO},
}
NAMES = {"image": ("pixel_values", "image_embeds"), "text": ("input_ids", "text_embeds")}


class Kitchen:
    """Makes variants.

    Args:
        floating, integer: the float model and the artifact; folder: where graphs lie.
    """

    def __init__(self, floating: Source, integer: Source, calibration: Calibration, folder: Path) -> None:
        self.floating, self.integer, self.calibration, self.folder = floating, integer, calibration, folder
        self._written: set[Path] = set()

    def make(self, tower: str, name: str) -> Graph:
        """One variant of one tower.

        Raises:
            ExportError: it cannot be made.
        """
        if name in RIVALS:
            return self._graph(tower, name, (self._rival(tower, name),))
        if name in OPENVINO:
            model = onnx.load(self._own(tower, OPENVINO[name]))
            path = self.folder / f"{tower}.{name}.xml"
            save_openvino(model, path)
            return self._graph(tower, name, (path, path.with_suffix(".bin")))
        return self._graph(tower, name, (self._own(tower, OWN[name]),))

    def _own(self, tower: str, storage: Storage) -> Path:
        """Our own graph, written anew in each run: that takes seconds, and one of another version would not show."""
        path = self.folder / f"{tower}.{REFERENCE if storage == 'float' else storage}.onnx"
        if path in self._written:
            return path
        source = self.floating if storage == "float" else self.integer
        model = image_graph(source, storage=storage) if tower == "image" else text_graph(source, storage=storage)
        if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
            raise ExportError(f"{source.name}: the {tower} tower takes more than the 2 GB that one file can hold")
        with appearing_whole(path) as temporary:
            onnx.save_model(model, temporary)
        self._written.add(path)
        return path

    def _rival(self, tower: str, name: str) -> Path:
        calibrated = name != "dynamic"
        batches = self.calibration.of(tower) if calibrated else ()
        digest = self.calibration.digest(tower) if calibrated else ""
        try:
            return rival(name, self._own(tower, "float"), NAMES[tower][0], batches, digest, self.folder)
        except (MissingExtraError, OSError):
            raise
        except Exception as error:  # whatever its many parts raise
            raise ExportError(f"onnxruntime cannot make it: {' '.join(str(error).split())[:300]}") from error

    def _graph(self, tower: str, name: str, files: tuple[Path, ...]) -> Graph:
        input, output = NAMES[tower]
        return Graph(
            name, "openvino" if name in OPENVINO else "onnxruntime", tuple(map(str, files)), input, output,
            "float32" if tower == "image" else "int64",
        )  # fmt: skip


def choose(wanted: Sequence[str] | None, source: Source) -> list[str]:
    """Check names of variants, or choose all that this artifact and this installation allow; fp32 comes first.

    Raises:
        UnknownNameError: there is no such variant.
        UsageError: the artifact has no weights of four bits.
    """
    for name in wanted or ():
        if name not in VARIANTS:
            raise UnknownNameError("variant", name, VARIANTS)
        if name.endswith("int4") and not source.has_int4:
            raise UsageError(f"{source.folder}: no weight has four bits, so there is no variant {name}")
    if wanted:
        return [name for name in VARIANTS if name in {REFERENCE, *wanted}]
    without = {name for name in VARIANTS if name.endswith("int4") and not source.has_int4}
    if importlib.util.find_spec("openvino") is None:
        without |= OPENVINO.keys()
    return [name for name in VARIANTS if name not in without]

"""Which kernels onnxruntime really runs."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from d4c.errors import ExportError, MissingExtraError
from d4c.export.checks.graph_layers import GraphReader
from d4c.export.checks.row import Row

INTEGER_KERNELS = frozenset(
    {"QGemm", "QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "NhwcQLinearConv"}
)
FLOAT_LAYERS = frozenset({"Gemm", "Conv", "FusedGemm", "FusedConv", "MatMulNBits"})  # no attention product is one
PRODUCTS = FLOAT_LAYERS | {"MatMul", "FusedMatMul"}


@dataclass(frozen=True)
class Kernel:
    """What a layer of the file became in memory.

    Args:
        layer: canonical name; op: the kernel's, "" where it was not found.
    """

    layer: str
    op: str

    @property
    def is_integer(self) -> bool:
        """Whether it multiplies integers."""
        return self.op in INTEGER_KERNELS


def optimized(path: Path) -> onnx.ModelProto:
    """The graph as onnxruntime runs it on this machine.

    Raises:
        ExportError: onnxruntime does not load the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnx", "verifying a graph") from error
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3  # it warns that what it saved fits this machine alone, which is what we want
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors derive from Exception alone
            raise ExportError(f"{path}: onnxruntime cannot load it: {' '.join(str(error).split())[:300]}") from error
        return onnx.load(options.optimized_model_filepath)


def kernels(model: onnx.ModelProto, running: onnx.ModelProto) -> list[Kernel]:
    """What every integer layer of a file became, found by the names of its weights.

    Args:
        model: as stored; running: the same one optimised.
    """
    reader, found = GraphReader(running), []
    for layer in GraphReader(model).layers():
        values = (layer.weight, f"{layer.weight}_s8", f"{layer.name}.weight_real")
        ops = [node.op_type for value in values for node in reader.consumers(value) if node.op_type != "Cast"]
        products = [op for op in ops if op in INTEGER_KERNELS | PRODUCTS]
        found.append(Kernel(layer.name, products[0] if products else "".join(ops[:1])))
    return found


def kernel_rows(tower: str, found: list[Kernel], running: onnx.ModelProto, *, quantized: bool) -> list[Row]:
    """Whether every layer of a quantized graph is an integer kernel; attention's products are counted beside.

    Args:
        quantized: whether the folder says so; of a float graph nothing is demanded.
    """
    wrong = [f"{k.layer} is {k.op or 'gone'}" for k in found if not k.is_integer]
    if quantized:
        wrong += [f"{node.output[0]} is {node.op_type}" for node in running.graph.node if node.op_type in FLOAT_LAYERS]
    counts = Counter(kernel.op for kernel in found if kernel.is_integer)
    floats = Counter(node.op_type for node in running.graph.node if node.op_type in PRODUCTS)
    said = ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))
    beside = ", ".join(f"{count} {op}" for op, count in sorted(floats.items())) or "none"
    passed = not wrong and bool(found) if quantized else None
    rows = [Row(f"{tower}: kernels", f"{said or 'no integer layer'}; float products: {beside}", passed)]
    return rows + [Row(f"{tower}: left in float", line, False) for line in dict.fromkeys(wrong)]

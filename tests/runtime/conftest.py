from pathlib import Path

import pytest

from runtime.small_graphs import write_export


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder for onnxruntime; tests must not change it."""
    return write_export(tmp_path_factory.mktemp("exports") / "onnx")


@pytest.fixture(scope="session")
def openvino_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for OpenVINO."""
    return write_export(tmp_path_factory.mktemp("exports") / "openvino", openvino=True)

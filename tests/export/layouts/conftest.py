"""Small artifacts and their exports, made once; tests must not change them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

import d4c
from conftest import RESNET, VIT, random_state, write_open_clip_folder, write_siglip_folder
from d4c.artifact import Exported, read_artifact
from d4c.export import Source, dequantized, find_layout, run, source_of
from d4c.models import load
from d4c.pipeline.exporting import float_source
from export.layouts.models import SMALL_SIGLIP

Exports = Callable[[str, str], tuple[Path, Exported]]
QUICK = ("synthesize.images=4", "reconstruct.method=none", "calibrate.texts=16")


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(vit, resnet or siglip; recipe) -> an artifact folder."""
    base = tmp_path_factory.mktemp("artifacts")
    write_open_clip_folder(base / "vit", VIT, random_state(VIT))
    write_open_clip_folder(base / "resnet", RESNET, random_state(RESNET))
    write_siglip_folder(base / "siglip", SMALL_SIGLIP, random_state(SMALL_SIGLIP))

    @functools.cache
    def artifact(kind: str, recipe: str) -> Path:
        out = base / f"{kind}-{recipe}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("D4C_CACHE", str(base / "cache"))
            d4c.quantize(f"local-dir:{base / kind}", recipe=recipe, out=out, images="noise", overrides=QUICK)
        return out

    return artifact


@pytest.fixture(scope="session")
def sources(artifacts: Callable[[str, str], Path]) -> Callable[[str, str], Source]:
    """(kind, recipe or "float") -> what is exported."""

    def source(kind: str, recipe: str) -> Source:
        if recipe == "float":
            return float_source(load(f"local-dir:{artifacts(kind, 'w4a8').parent / kind}"))
        artifact = read_artifact(artifacts(kind, recipe))
        return source_of(artifact) if artifact.quantization["deployable"] else dequantized(artifact)

    return source


@pytest.fixture(scope="session")
def exports(
    artifacts: Callable[[str, str], Path], sources: Callable[[str, str], Source],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Path, Exported]]:  # fmt: skip
    """(kind, layout, recipe or "float") -> the exported folder and its d4c.json."""
    base = tmp_path_factory.mktemp("exports")

    @functools.cache
    def export(kind: str, layout: str, recipe: str) -> tuple[Path, Exported]:
        out = base / f"{kind}-{recipe}-{layout}"
        figures = None
        if recipe != "float":
            figures = json.loads((artifacts(kind, recipe) / "report.json").read_text())
        source = sources(kind, recipe)
        if find_layout(layout).float_weights and recipe != "float":
            source = dequantized(read_artifact(artifacts(kind, recipe)))
        return out, run(source, layout, out, figures=figures)

    return lambda kind, layout, recipe="w4a8": export(kind, layout, recipe)


@pytest.fixture
def session() -> Callable[[Path], onnxruntime.InferenceSession]:
    """A graph on one thread."""

    def open_session(path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    return open_session

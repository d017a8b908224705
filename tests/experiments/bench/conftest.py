"""A small artifact, and exported folders written by hand as d4c.json describes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
import pytest

import d4c
from d4c.artifact import Exported, ExportedTower, read_artifact
from d4c.artifact.exported import EXPORTED
from d4c.artifact.folder import file_sha256
from d4c.export.source import Source, source_of
from d4c.export.towers import image_graph, text_graph
from d4c.models import load
from d4c.pipeline.exporting import float_source

SMALL = ("synthesize.images=4", "calibrate.texts=4", "reconstruct.method=none")


@pytest.fixture(scope="session")
def artifact(vit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT at w4a8, its images kept; tests must not change it."""
    out = tmp_path_factory.mktemp("artifacts") / "vit"
    d4c.quantize(
        f"local-dir:{vit_folder}", recipe="w4a8", out=out, images="one_over_f", device="cpu", overrides=SMALL,
        keep_images=True,
    )  # fmt: skip
    return out


def write_exported(folder: Path, source: Source, storages: tuple[str, ...], **changes: object) -> Path:
    """Both towers of a source and d4c.json."""
    folder.mkdir(parents=True)
    files: dict[str, dict[str, str]] = {"image": {}, "text": {}}
    for storage in storages:
        for kind, write in (("image", image_graph), ("text", text_graph)):
            files[kind][storage] = f"{kind}.{storage}.onnx"
            onnx.save_model(write(source, storage=storage), folder / files[kind][storage])  # type: ignore[operator]
    source.preprocess.save(folder)
    source.tokenizer.save(folder)
    sha256 = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    exported = Exported(
        "onnx", "onnxruntime", ExportedTower(files["image"], "pixel_values", "image_embeds"),
        ExportedTower(files["text"], "input_ids", "text_embeds"), "int64", False, False, source.config.embed_dim,
        source.logit_scale, None, "a photo of a {c}.", source.name, source.fingerprint, source.recipe,
        source.content_sha256, source.folder, sha256,
    )  # fmt: skip
    exported = dataclasses.replace(exported, **changes)  # type: ignore[arg-type]
    (folder / EXPORTED).write_text(json.dumps(exported.to_dict()))
    return folder


@pytest.fixture(scope="session")
def exported(artifact: Path, vit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The artifact and its float model as exported folders: `integer` (both storages) and `float`."""
    folder = tmp_path_factory.mktemp("exported")
    floating = float_source(load(f"local-dir:{vit_folder}"))
    return {
        "integer": write_exported(folder / "integer", source_of(read_artifact(artifact)), ("int8", "int4")),
        "float": write_exported(folder / "float", floating, ("float",)),
    }

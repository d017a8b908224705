"""Folders appear whole or not at all, and nothing that is not ours is touched."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d4c.artifact import read_exported
from d4c.errors import ExportError, MissingExtraError, UnknownNameError, UnsupportedModelError, UsageError
from d4c.export import Source, run
from d4c.export.layouts import files, to_onnx
from d4c.inputs import Preprocess

Sources = Callable[[str, str], Source]


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()
    }


def test_an_unknown_layout_is_named_with_the_nearest(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        run(sources("vit", "w8a8"), "openvinno", tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["folder", "file"])
def test_what_no_export_made_is_never_touched(sources: Sources, tmp_path: Path, place: str) -> None:
    out = tmp_path / "out"
    if place == "folder":
        out.mkdir()
        (out / "letter.txt").write_text("dear")
    else:
        out.write_text("dear")
    before = content(tmp_path)
    with pytest.raises(UsageError, match="is no exported folder"):
        run(sources("vit", "w8a8"), "onnx", out, fresh=True)
    assert content(tmp_path) == before


def test_an_earlier_export_is_replaced_with_fresh_alone(sources: Sources, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(sources("vit", "w8a8"), "immich", out)
    before = content(tmp_path)
    with pytest.raises(UsageError, match="--fresh"):
        run(sources("vit", "w8a8"), "onnx", out)
    assert content(tmp_path) == before
    exported = run(sources("vit", "w8a8"), "onnx", out, fresh=True)
    assert read_exported(out) == exported
    assert {path.name for path in out.iterdir()} == {
        "d4c.json", "image.onnx", "text.onnx", "README.md", "preprocessor_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_an_earlier_export_is_replaced_by_the_new_one(sources: Sources, tmp_path: Path) -> None:
    run(sources("vit", "w8a8"), "immich", tmp_path / "first")
    before = content(tmp_path / "first")
    (tmp_path / "out").symlink_to(tmp_path / "first")
    exported = run(sources("vit", "w8a8"), "onnx", tmp_path / "out", fresh=True)
    assert read_exported(tmp_path / "out") == exported
    assert content(tmp_path / "first") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out"]


def test_an_empty_folder_may_be_filled_and_parents_are_made(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run(sources("vit", "w8a8"), "onnx", tmp_path / "empty")
    run(sources("vit", "w8a8"), "onnx", tmp_path / "a" / "b")
    assert (tmp_path / "empty" / "d4c.json").is_file()
    assert (tmp_path / "a" / "b" / "d4c.json").is_file()


def test_a_failure_half_way_leaves_what_was_there(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(sources("vit", "w8a8"), "onnx", out)
    before = content(tmp_path)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(to_onnx, "write_text", broken)  # after the image graph is written
    with pytest.raises(OSError, match="No space"):
        run(sources("vit", "w8a8"), "onnx", out, fresh=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize(("recipe", "layout", "storage", "possible"), [
    ("w8a8", "onnx", "int4", "int8"),
    ("float", "onnx", "int8", "float"),
    ("w4a8", "open_clip", "int8", "float"),
])  # fmt: skip
def test_a_storage_that_the_weights_cannot_have_is_refused(
    sources: Sources, tmp_path: Path, recipe: str, layout: str, storage: Any, possible: str
) -> None:
    with pytest.raises(UsageError, match=f"--storage {storage} is not possible .*; possible: {possible}$"):
        run(sources("vit", recipe), layout, tmp_path / "out", storage=storage)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("layout", "storage", "files"), [
    ("onnx", "int8", ["image.onnx"]),
    ("huggingface", "int8", ["onnx/vision_model_quantized.onnx"]),
    ("huggingface", "int4", ["onnx/vision_model_q4.onnx"]),
    ("huggingface", None, ["onnx/vision_model_quantized.onnx", "onnx/vision_model_q4.onnx"]),
])  # fmt: skip
def test_storage_chooses_the_files(
    sources: Sources, tmp_path: Path, layout: str, storage: Any, files: list[str]
) -> None:
    exported = run(sources("vit", "w4a8"), layout, tmp_path / "out", storage=storage)
    assert [*exported.image.files.values()] == files
    assert [*exported.image.files] == ([storage] if storage else ["int8", "int4"])


@pytest.mark.parametrize("layout", ["onnx", "huggingface"])
def test_weights_that_do_not_fit_one_file_are_refused_before_a_graph_is_built(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    source = sources("vit", "float")
    sizes = {t: sum(a.nbytes for n, a in source.arrays.items() if n.startswith(t)) for t in ("image.", "text.")}
    limit = sizes["text."] if layout == "huggingface" else sizes["text."] - 1  # only the combined one, or text
    monkeypatch.setattr(files, "MOST_BYTES", limit)
    name = "onnx/model.onnx" if layout == "huggingface" else "text.onnx"
    with pytest.raises(ExportError, match=f"{name} would hold .* GB of weights"):
        run(source, layout, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_four_bits_count_half_a_byte(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources("vit", "w4a8")
    image = {n: a for n, a in source.arrays.items() if n.startswith("image.")}
    four = sum(a.size for n, a in image.items() if source.weights.get(n.removesuffix(".weight")) == 4)
    assert four > 0
    monkeypatch.setattr(files, "MOST_BYTES", sum(a.nbytes for a in image.values()) - four / 2)
    files.check_size(source, "int4", "image.onnx", "image.")
    with pytest.raises(ExportError):
        files.check_size(source, "int8", "image.onnx", "image.")


@pytest.mark.parametrize("layout", ["huggingface", "immich", "fastembed"])
def test_pictures_scaled_by_their_long_side_are_refused_where_nobody_can(
    sources: Sources, tmp_path: Path, layout: str
) -> None:
    source = dataclasses.replace(sources("vit", "w8a8"), preprocess=Preprocess(32, resize_mode="longest"))
    with pytest.raises(UnsupportedModelError, match="scales the long side"):
        run(source, layout, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("layout", "package"), [("onnx", "onnx"), ("openvino", "openvino"), ("immich", "onnx")])
def test_a_missing_extra_is_named(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(MissingExtraError, match=rf"pip install 'd4c\[{package}\]'"):
        run(sources("vit", "w8a8"), layout, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_two_exports_of_one_artifact_hold_the_same_bytes(sources: Sources, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(sources("resnet", "w4a8"), "huggingface", tmp_path / name)
    assert (tmp_path / "a" / "d4c.json").read_bytes() == (tmp_path / "b" / "d4c.json").read_bytes()
    assert "onnx/model_q4.onnx" in json.loads((tmp_path / "a" / "d4c.json").read_text())["sha256"]

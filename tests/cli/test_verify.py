"""`d4c verify` as the shell calls it, on the exported folder of a small artifact."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import d4c
from d4c.artifact.exported import EXPORTED
from d4c.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    """The cache is the one that the artifacts were made with."""
    monkeypatch.setenv("D4C_CACHE", str(made / "cache"))


@pytest.fixture(scope="module")
def made(vit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two artifacts, `w4a8` and `w8a8`, and the first one's graphs, `onnx`."""
    base = tmp_path_factory.mktemp("verify")
    quick = ("synthesize.images=2", "reconstruct.method=none", "calibrate.texts=8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D4C_CACHE", str(base / "cache"))
        for recipe in ("w4a8", "w8a8"):
            d4c.quantize(f"local-dir:{vit_folder}", recipe=recipe, out=base / recipe, images="noise", overrides=quick)
        patch.setattr("sys.argv", ["d4c", "export", str(base / "w4a8"), "--out", str(base / "onnx")])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert not exit_.value.code
    return base


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "onnx", tmp_path / "onnx")


def change(folder: Path, name: str, constant: str, factor: float) -> None:
    """Plant a fault, checksums and all."""
    model = onnx.load(folder / name)
    (tensor,) = [t for t in model.graph.initializer if t.name == constant]
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), constant))
    onnx.save(model, folder / name)
    about = json.loads((folder / EXPORTED).read_text())
    about["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / EXPORTED).write_text(json.dumps(about))


def test_an_export_passes_and_its_table_is_json_too(run: Run, folder: Path) -> None:
    code, out, _ = run("verify", folder, "--json")
    found = json.loads(out)
    assert (code, found["passed"]) == (0, True)
    rows = {row["check"]: row["found"] for row in found["rows"]}
    assert "against int64" in rows["image: products"]
    assert {"images synthetic", "images one_over_f", "texts", "text alone and in 8"} <= set(rows)
    assert all(row["passed"] for row in found["rows"])


def test_a_scale_two_percent_off_is_code_3(run: Run, folder: Path) -> None:
    change(folder, "text.onnx", "text.blocks.1.mlp.fc2.weight_scale", 1.02)
    code, out, err = run("verify", folder)
    assert code == 3
    assert "text.blocks.1.mlp.fc2" in out
    assert "FAIL" in out
    assert err.splitlines()[-1].startswith(f"Error: {folder}: ")
    assert "text: not exact" in err


def test_without_the_artifact_structure_is_checked_and_said_to_be_all(run: Run, made: Path, folder: Path) -> None:
    about = json.loads((folder / EXPORTED).read_text())
    (folder / EXPORTED).write_text(json.dumps(about | {"artifact": str(made / "gone")}))
    code, out, _ = run("verify", folder)
    assert code == 0
    assert "structure alone is checked" in out
    assert "int64" not in out
    code, out, _ = run("verify", folder, "--artifact", made / "w4a8")
    assert (code, "against int64" in out) == (0, True)


def test_the_graph_of_both_towers_is_held_to_them(run: Run, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    code, out, _ = run("export", made / "w4a8", "--layout", "huggingface", "--out", folder, "--json")
    rows = {row["check"]: row["passed"] for row in json.loads(out)["verify"]["rows"]}
    assert code == 0
    for storage in ("int8", "int4"):
        for what in ("kernels", "images", "texts", "logits"):
            assert rows[f"both towers, {storage}: {what}"]
    change(folder, "onnx/model_quantized.onnx", "logit_scale", 1.01)
    code, out, err = run("verify", folder)
    assert (code, "both towers, int8: logits" in err) == (3, True)


def test_the_graph_of_both_towers_of_a_siglip_adds_its_bias(run: Run, siglip_folder: Path, tmp_path: Path) -> None:
    quick = ("synthesize.images=2", "reconstruct.method=none", "calibrate.texts=8")
    d4c.quantize(f"local-dir:{siglip_folder}", recipe="w8a8", out=tmp_path / "s", images="noise", overrides=quick)
    folder = tmp_path / "hf"
    code, out, _ = run("export", tmp_path / "s", "--layout", "huggingface", "--out", folder, "--json")
    rows = {row["check"]: row["passed"] for row in json.loads(out)["verify"]["rows"]}
    assert (code, rows["both towers: logits"]) == (0, True)
    change(folder, "onnx/model_quantized.onnx", "logit_bias", 0.9)
    code, _, err = run("verify", folder)
    assert (code, "both towers: logits" in err) == (3, True)


def test_a_tower_of_the_graph_of_both_that_differs_is_found(run: Run, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    assert run("export", made / "w8a8", "--layout", "huggingface", "--out", folder, "--no-verify")[0] == 0
    change(folder, "onnx/model_quantized.onnx", "image.blocks.1.mlp.fc2.weight_scale", 1.5)
    code, _, err = run("verify", folder)
    assert (code, "both towers: images" in err) == (3, True)


def test_another_model_where_the_float_one_lay_makes_no_images(
    run: Run, made: Path, folder: Path, resnet_folder: Path, tmp_path: Path
) -> None:
    artifact = shutil.copytree(made / "w4a8", tmp_path / "w4a8")
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps(manifest | {"source": f"local-dir:{resnet_folder}"}))
    code, out, _ = run("verify", folder, "--artifact", artifact, "--json")
    rows = {row["check"] for row in json.loads(out)["rows"]}
    assert code == 0
    assert {"images one_over_f", "images dead_leaves"} <= rows
    assert "images synthetic" not in rows


def test_openvino_is_held_to_the_artifact_too(run: Run, made: Path, tmp_path: Path) -> None:
    code, out, _ = run("export", made / "w4a8", "--layout", "openvino", "--out", tmp_path / "ov")
    assert code == 0
    assert "FullyConnected u8" in out
    assert "pass" in out


def test_bad_input_is_one_line(run: Run, made: Path, folder: Path, tmp_path: Path) -> None:
    assert run("export", made / "w4a8", "--layout", "open_clip", "--out", tmp_path / "oc")[0] == 0
    for code, words, arguments in (
        (2, "no such folder", (tmp_path / "nowhere",)),
        (2, "is an artifact", (made / "w4a8",)),
        (2, "weights for open_clip, no graphs", (tmp_path / "oc",)),
        (2, "not the artifact that", (folder, "--artifact", made / "w8a8")),
        (1, "not an artifact", (folder, "--artifact", folder)),
    ):
        ended, out, err = run("verify", *arguments)
        assert (ended, out) == (code, "")
        assert words in err
    data = np.frombuffer((folder / "image.onnx").read_bytes(), np.uint8).copy()
    data[len(data) // 2] ^= 1
    (folder / "image.onnx").write_bytes(data.tobytes())
    ended, out, err = run("verify", folder)
    assert (ended, out, err.count("\n")) == (1, "", 1)
    assert "image.onnx is damaged" in err

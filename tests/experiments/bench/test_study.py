import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d4c.errors import MissingExtraError, UnknownNameError, UsageError
from d4c.experiments.bench import report, run
from d4c.experiments.bench.request import Request, prepare
from d4c.experiments.bench.study import run as study
from experiments.bench.conftest import write_exported


def silent(label: str, done: int, total: int) -> None:
    pass


def asked(folders: list[Path], out: Path, **changes: Any) -> Request:
    settings: dict[str, Any] = {"batches": "1,2", "threads": "1", "rounds": 2, "against": None, "images": None}
    return prepare(folders, out=out, **{**settings, "variants": None, **changes})


@pytest.fixture(autouse=True)
def _one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LOADS", 1)


def test_an_artifact_beside_float_and_onnxruntime_s_quantizers(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = asked([artifact], Path("bench"), variants="int8,int4,static,static-linear,dynamic")
    result = study(request, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"bench", "bench.work", "cache"}
    assert json.loads((tmp_path / "bench" / "bench.json").read_text()) == result
    names = ["fp32", "int8", "int4", "static", "static-linear", "dynamic"]
    for kind in ("image", "text"):
        tower = result["towers"][kind]
        assert list(tower["variants"]) == names
        assert tower["failed"] == {}
        variants = tower["variants"]
        for about in variants.values():
            assert about["loaded_bytes"] > about["before_bytes"] > 0
            assert [(r["threads"], r["batch"]) for r in about["runs"]] == [(1, 1), (1, 2)]
            for i, r in enumerate(about["runs"]):
                assert r["ratio"] == pytest.approx(variants["fp32"]["runs"][i]["median_ms"] / r["median_ms"])
                assert r["per_second"] == pytest.approx(1000 * r["batch"] / r["median_ms"])
        assert max(variants["fp32"]["centred_error"].values()) < 1e-4
        assert 1e-3 < report.worst_error(variants["int8"]) < 0.5
        # four bits on disk are the same numbers
        assert variants["int4"]["centred_error"] == pytest.approx(variants["int8"]["centred_error"], rel=1e-3)
        assert variants["int4"]["file_bytes"] < variants["int8"]["file_bytes"] < variants["fp32"]["file_bytes"]
    text = result["towers"]["text"]
    assert report.worst_error(text["variants"]["static-linear"]) < report.worst_error(text["variants"]["static"])
    assert text["tokens"]["1"] <= text["tokens"]["2"] < 77
    assert "the artifact's own 4 images" in result["about"]["calibration"]["images"]
    assert set(result["judged_on"]["images"]) == {"synthetic", "ten_steps", "one_over_f", "dead_leaves"}
    with Image.open(tmp_path / "bench" / "bench.png") as picture:
        assert picture.width > 500
    said = (tmp_path / "bench" / "bench.md").read_text()
    assert result["machine"]["name"] in said
    assert all(f"| {name} |" in said for name in names)


def test_quantizers_of_others_run_once_for_the_same_graph_and_images(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from d4c.experiments.bench import rivals

    request = asked([artifact], tmp_path / "bench", variants="static-linear", batches="1", rounds=1)
    study(request, silent)
    made = set(request.work_folder.glob("*static-linear*"))
    assert len(made) == 2
    monkeypatch.setattr(rivals, "_quantize_static", None)  # calling it would fail
    study(request, silent)
    assert set(request.work_folder.glob("*static-linear*")) == made


def test_pictures_of_one_s_own_calibrate_the_rivals(
    artifact: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked([artifact], tmp_path / "b", variants="static-linear", batches="1", rounds=1, images=pictures)
    assert study(request, silent)["about"]["calibration"]["images"] == f"4 pictures of {pictures}"


def test_without_kept_images_the_set_that_calibrates_does_not_judge(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "vit").symlink_to(artifact)  # nothing lies beside it here
    request = asked([tmp_path / "vit"], tmp_path / "b", variants="static-linear", batches="1", rounds=1)
    result = study(request, silent)
    assert "made anew" in result["about"]["calibration"]["images"]
    assert result["judged_on"]["images"] == ["ten_steps", "one_over_f", "dead_leaves"]


def test_openvino_runs_the_same_numbers(artifact: Path, tmp_path: Path) -> None:
    request = asked([artifact], tmp_path / "b", variants="int8,openvino-int4", batches="1", rounds=1)
    for kind, tower in study(request, silent)["towers"].items():
        variants = tower["variants"]
        difference = report.worst_error(variants["openvino-int4"]) - report.worst_error(variants["int8"])
        assert abs(difference) < 0.02
        files = [request.work_folder / f"{kind}.openvino-int4.{suffix}" for suffix in ("xml", "bin")]
        assert variants["openvino-int4"]["file_bytes"] == sum(file.stat().st_size for file in files)


def test_exported_folders_are_measured_as_they_are(exported: dict[str, Path], tmp_path: Path) -> None:
    integer = tmp_path / "float-int8"  # begins like the name of the float folder
    integer.symlink_to(exported["integer"])
    (tmp_path / "float").symlink_to(exported["float"])
    folders = [integer, tmp_path / "float"]
    result = study(asked(folders, tmp_path / "b", batches="1", rounds=1), silent)
    names = [f"{integer} int8", f"{integer} int4", str(tmp_path / "float")]
    for tower in result["towers"].values():
        assert list(tower["variants"]) == names
        errors = [report.worst_error(tower["variants"][name]) for name in names]
        assert errors[2] == 0
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)
        assert 1e-3 < errors[0] < 0.5


def test_an_exported_folder_alone_has_no_error_unless_the_float_model_is_named(
    exported: dict[str, Path], vit_folder: Path, tmp_path: Path
) -> None:
    folders = [exported["integer"]]
    result = study(asked(folders, tmp_path / "b", batches="1", rounds=1), silent)
    assert all(a["centred_error"] is None for a in result["towers"]["image"]["variants"].values())
    assert any("--against" in note for note in report.notes(result))
    named = study(asked(folders, tmp_path / "b", batches="1", rounds=1, against=f"local-dir:{vit_folder}"), silent)
    assert all(0 < report.worst_error(a) < 0.5 for a in named["towers"]["image"]["variants"].values())


def test_what_cannot_be_measured_is_refused_before_any_work(
    artifact: Path, exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {
        "one artifact, or several": lambda: asked([artifact, artifact], tmp_path / "b"),
        "not both": lambda: asked([artifact, exported["float"]], tmp_path / "b"),
        "--batches 0": lambda: asked([artifact], tmp_path / "b", batches="0"),
        "--threads a": lambda: asked([artifact], tmp_path / "b", threads="a"),
        "neither an artifact": lambda: asked([tmp_path], tmp_path / "b"),
        "no such folder": lambda: asked([tmp_path / "x"], tmp_path / "b"),
        "measured as they are": lambda: asked([exported["float"]], tmp_path / "b", variants="int8"),
    }
    for said, ask in refused.items():
        with pytest.raises(UsageError, match=said):
            ask()
    with pytest.raises(UnknownNameError, match="did you mean 'static'"):
        study(asked([artifact], tmp_path / "b", variants="statics"), silent)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"d4c\[plots\]"):
        asked([artifact], tmp_path / "b")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"d4c\[onnx\]"):
        asked([artifact], tmp_path / "b")


def test_folders_of_two_models_are_not_compared(exported: dict[str, Path], tmp_path: Path) -> None:
    other = json.loads((exported["float"] / "d4c.json").read_text()) | {"fingerprint": "f" * 64}
    folder = tmp_path / "other"
    folder.mkdir()
    for path in exported["float"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "d4c.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match="one model at a time"):
        study(asked([exported["integer"], folder], tmp_path / "b"), silent)


def test_graphs_with_normalized_embeddings_are_judged_by_direction(
    exported: dict[str, Path], artifact: Path, vit_folder: Path, tmp_path: Path
) -> None:
    from d4c.artifact import read_artifact
    from d4c.export.source import source_of

    folder = write_exported(tmp_path / "n", source_of(read_artifact(artifact)), ("int8",), normalized=True)
    request = asked([folder], tmp_path / "b", batches="1", rounds=1, against=f"local-dir:{vit_folder}")
    error = report.worst_error(study(request, silent)["towers"]["image"]["variants"][str(folder)])
    assert error is not None
    assert np.isfinite(error)

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from d4c.cli.main import main
from d4c.errors import UsageError
from d4c.experiments.analyze import PARTS, Request, prepare, run
from d4c.experiments.analyze.request import read_set
from d4c.images import ImageSet
from d4c.models import Clip

QUICK = ("calibrate.range=minmax", "calibrate.texts=8")


@pytest.fixture
def pictures(tmp_path: Path, pixels: Tensor) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, x in enumerate(pixels):
        array = (255 * x.sigmoid()).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def request_of(
    vit_folder: Path, resnet_folder: Path, siglip_folder: Path, pictures: Path, tmp_path: Path
) -> Callable[..., Request]:
    folders = {"vit": vit_folder, "resnet": resnet_folder, "siglip": siglip_folder}

    def make(kind: str = "vit", **changes: object) -> Request:
        arguments = {
            "images": [f"real={pictures}", "noise=noise", "leaves=dead_leaves"], "out": tmp_path / "out", "limit": 6,
            "judge_images": 2, "bits": (4,), "iterations": 1, "overrides": QUICK, "transfer_recipes": ("w8a8",),
            "device": "cpu",
        }  # fmt: skip
        return prepare(f"local-dir:{folders[kind]}", **(arguments | changes))  # type: ignore[arg-type]

    return make


def test_patches_of_a_tower_without_a_class_token(request_of: Callable[..., Request]) -> None:
    result = run(request_of("siglip", only=("patches",)), lambda *_: None)
    assert set(result["patches"]) == {"real", "noise", "leaves"}


def test_the_reference_alone_is_measured_too(
    request_of: Callable[..., Request], pictures: Path, tmp_path: Path
) -> None:
    run(request_of(images=[f"real={pictures}"], only=("patches",)), lambda *_: None)
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_whole_analysis_makes_figures_pictures_and_a_page(
    kind: str, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    result = run(request_of(kind), lambda *_: None)
    out = tmp_path / "out"
    assert json.loads((out / "analysis.json").read_text()) == result
    assert set(result) == {"about", *PARTS}
    names = {path.stem for path in out.glob("*.png")}
    assert names == {
        "bottlenecks", "coverage", "map", "patch-examples", "patches", "sensitivity-kinds", "sensitivity-layers",
        "text-mlp", "transfer",
    }  # fmt: skip
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200
    assert (out / "report.html").read_text().count("data:image/png") == len(names)
    assert result["about"]["calibrate_on"] == "noise"
    assert {s["images"] for s in result["about"]["sets"].values()} == {6}


def test_the_same_command_recalls_every_cell(request_of: Callable[..., Request], tmp_path: Path) -> None:
    parts = {"only": ("coverage", "map", "transfer")}
    first = run(request_of(**parts), lambda *_: None)
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.json")}
    assert run(request_of(**parts), lambda *_: None) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.json")} == cells


def test_another_set_leaves_cells_of_the_others_valid(
    request_of: Callable[..., Request], pictures: Path, tmp_path: Path
) -> None:
    images = [f"real={pictures}", "noise=noise"]
    run(request_of(images=images, only=("patches",)), lambda *_: None)
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.json")}
    run(request_of(images=[*images, "more=one_over_f"], only=("patches",)), lambda *_: None)
    assert all(path.stat().st_mtime_ns == time for path, time in cells.items())


def test_sets_come_from_folders_files_and_procedures(
    tiny_clip: Clip, pixels: Tensor, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    made = ImageSet.unlabelled(pixels, "d4c")
    made.save(tmp_path / "made" / "images.safetensors")
    for path in (tmp_path / "made", tmp_path / "made" / "images.safetensors"):
        assert torch.equal(read_set(str(path), tiny_clip, 8, 0).pixels, pixels)
    assert len(read_set(str(pictures), tiny_clip, 3, 0)) == 3
    assert read_set("one_over_f", tiny_clip, 5, 0).source == "one_over_f"
    small = ImageSet.unlabelled(pixels[:, :, :16, :16].contiguous(), "d4c")
    small.save(tmp_path / "small.safetensors")
    with pytest.raises(UsageError, match="images of 16 pixels, the model takes 32"):
        read_set(str(tmp_path / "small.safetensors"), tiny_clip, 8, 0)


def test_the_reference_is_the_set_called_real_unless_another_is_named(request_of: Callable[..., Request]) -> None:
    assert request_of().reference == "real"
    assert request_of(reference="leaves").reference == "leaves"
    assert request_of(images=["noise=noise"], only=("coverage",)).reference is None
    assert request_of(calibrate_on="real").calibrate_on == "real"


def test_every_set_has_the_shortest_ones_length(request_of: Callable[..., Request]) -> None:
    assert {len(s) for s in request_of(limit=100).sets.values()} == {8}
    with pytest.raises(UsageError, match="at least 4 images"):
        request_of(limit=3)


Refused = Callable[..., None]


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vit_folder: Path, tmp_path: Path
) -> Refused:
    """Run and check that it ends with exit code 2, one line that holds these words, and no new file."""
    monkeypatch.chdir(tmp_path)

    def check(words: str, *arguments: object) -> None:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr("sys.argv", ["d4c", "analyze", f"local-dir:{vit_folder}", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        assert (exit_.value.code, captured.out) == (2, "")
        assert captured.err.startswith("Error: ")
        assert captured.err.count("\n") == 1
        assert words in captured.err
        assert sorted(tmp_path.rglob("*")) == before

    return check


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("write NAME=PATH", ["--images", "noise"]),
        ("write NAME=PATH", ["--images", "a/b=noise"]),
        ("called a already", ["--images", "a=noise", "--images", "a=dead_leaves"]),
        ("neither a folder, a file, nor one of noise", ["--images", "a=nowhere"]),
        ("did you mean 'coverage'?", ["--images", "a=noise", "--only", "covrage"]),
        ("unknown image set 'real'", ["--images", "a=noise", "--reference", "real"]),
        ("unknown image set 'b'", ["--images", "a=noise", "--calibrate", "b"]),
        ("name a set to calibrate on", ["--images", "real=noise"]),
        ("give it another", ["--images", "a=noise", "--images", "ten_steps=noise", "--reference", "ten_steps"]),
        ("did you mean 'w4a8'?", ["--images", "a=noise", "--recipe", "w4a9"]),
        ("unknown recipe 'w4a5'", ["--images", "a=noise", "--transfer-recipe", "w4a5"]),
        ("--bits 9: need 2 to 8", ["--images", "a=noise", "--bits", "9"]),
        ("needs --root", ["--images", "a=noise", "--dataset", "wds/x"]),
        ("images", []),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words: str, arguments: list[str], refused: Refused) -> None:
    refused(words, "--out", "out", *arguments)


def test_a_folder_that_holds_other_things_is_not_written_to(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    refused("is no part of an analysis", "--out", "thesis", "--images", "a=noise")


def test_the_command_prints_figures(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    vit_folder: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    command = ["d4c", "analyze", f"local-dir:{vit_folder}", "--out", str(tmp_path / "out"), "--only", "coverage"]
    command += ["--images", f"real={pictures}", "--images", "noise=noise", "--limit", "6"]
    for extra in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", command + extra)
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 0
    text, _, document = capsys.readouterr().out.partition("\n{\n")
    assert "KL divergence" in text
    assert json.loads("{\n" + document)["coverage"]["images"] == 6


def test_without_matplotlib_the_extra_is_named(
    request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'd4c\[plots\]'"):
        request_of()
    assert not (tmp_path / "out").exists()

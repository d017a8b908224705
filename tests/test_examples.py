"""The examples run, and do what they say."""

import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.small_graphs import write_export

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "2025").mkdir(parents=True)
    for name, colour in (("red.png", "red"), ("2025/blue.jpg", "blue"), ("2025/green.png", "green")):
        Image.new("RGB", (40, 30), colour).save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_photographs_are_found_and_embedded_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from d4c.runtime import Session

    folder, index = write_export(tmp_path / "onnx"), tmp_path / "index.npz"
    cosines = {
        name: float(Session(folder).encode_image(photos / name)[0] @ Session(folder).encode_text("red")[0])
        for name in ("red.png", "2025/blue.jpg", "2025/green.png")
    }
    best = max(cosines, key=lambda name: cosines[name])
    arguments = (folder, photos, "red", "--top", 1, "--index", index)

    run("search_photos.py", *arguments, monkeypatch=monkeypatch)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["red", f"  {cosines[best]:.3f}  {photos / best}"]
    assert "broken.png" in shown.err

    embedded: list[object] = []
    original = Session.encode_image
    monkeypatch.setattr(Session, "encode_image", lambda self, x: [embedded.append(x), original(self, x)][1])
    (photos / "broken.png").unlink()
    run("search_photos.py", *arguments, monkeypatch=monkeypatch)
    assert capsys.readouterr().out == shown.out
    assert embedded == []  # all are in the index
    os.utime(photos / "red.png", ns=(1, 1))
    (photos / "2025" / "blue.jpg").unlink()
    run("search_photos.py", *arguments, monkeypatch=monkeypatch)
    assert embedded == [photos / "red.png"]
    assert len(np.load(index)["pictures"]) == 2


def test_images_of_ones_own_are_compared(
    vit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("synthesize.images=4", "synthesize.steps=2", "calibrate.texts=8", "reconstruct.method=none")
    overrides = [part for setting in small for part in ("--set", setting)]
    arguments = (f"local-dir:{vit_folder}", "--out", tmp_path / "runs", *overrides)
    run("own_images.py", *arguments, monkeypatch=monkeypatch)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[2:] == ["synthetic", "ten_steps", "one_over_f", "dead_leaves"]
    assert [row.split()[0] for row in rows] == ["waves", "one_over_f", "dead_leaves", "d4c"]
    assert all(0 < float(error) < 1 for row in rows for error in row.split()[1:])

    ideas = tmp_path / "own_images.py"
    ideas.write_text(
        (EXAMPLES / "own_images.py").read_text().replace("WAVES, MOST_CYCLES = 12", "WAVES, MOST_CYCLES = 1")
    )
    run(str(ideas), *arguments, monkeypatch=monkeypatch)  # another idea, in the same folder
    _, changed, *others = capsys.readouterr().out.splitlines()
    assert (changed != rows[0], others) == (True, rows[1:])


def test_what_was_not_exported_is_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("search_photos.py", photos, photos, "red", monkeypatch=monkeypatch)
    assert "d4c.json" in capsys.readouterr().err

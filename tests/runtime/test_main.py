"""`python -m d4c.runtime` in this process; `test_install` runs it as users do."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d4c.runtime import Session
from d4c.runtime.__main__ import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["d4c.runtime", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_labels_are_printed_with_their_probabilities(run: Run, export: Path, image: Path) -> None:
    (expected,) = Session(export).classify(image, ["dog", "cat"])
    code, out, err = run(export, image, "dog", "cat")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{p:7.2%}  {label}" for label, p in expected.items()]
    assert json.loads(run(export, image, "dog", "cat", "--json", "--threads", 1)[1]) == pytest.approx(expected)
    (other,) = Session(export).classify(image, ["dog", "cat"], "{c}?")
    arguments = (export, image, "dog", "cat", "--json", "--template", "{c}?", "--storage", "int8")
    assert json.loads(run(*arguments)[1]) == pytest.approx(other)


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "required", ["EXPORT"]),
        (2, "required", ["EXPORT", "IMAGE"]),
        (2, "no such folder: nowhere", ["nowhere", "IMAGE", "dog"]),
        (2, "no such file: nowhere", ["EXPORT", "nowhere", "dog"]),
        (2, "a label is empty", ["EXPORT", "IMAGE", " "]),
        (2, "same to this model", ["EXPORT", "IMAGE", "dog", "dog"]),
        (2, "unknown storage 'int2'", ["EXPORT", "IMAGE", "dog", "--storage", "int2"]),
        (2, "threads", ["EXPORT", "IMAGE", "dog", "--threads", "0"]),
        (2, "--threads", ["EXPORT", "IMAGE", "dog", "--threads", "many"]),
        (2, "template", ["EXPORT", "IMAGE", "dog", "--template", "dog"]),
        (1, "d4c.json", ["FOLDER", "IMAGE", "dog"]),
        (1, "not a picture", ["EXPORT", "EXPORT/d4c.json", "dog"]),
        (1, "too long", ["EXPORT", "x" * 300, "dog"]),
    ],
)
def test_what_is_wrong_is_one_line(
    code: int, words: str, arguments: list[str], run: Run, export: Path, image: Path, tmp_path: Path
) -> None:
    places = {"EXPORT": export, "IMAGE": image, "FOLDER": tmp_path, "EXPORT/d4c.json": export / "d4c.json"}
    ended, out, err = run(*(places.get(argument, argument) for argument in arguments))
    assert (ended, out) == (code, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert words in err

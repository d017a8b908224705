import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d4c.cli.main import main
from d4c.runtime import Session
from runtime.small_graphs import write_export

Run = Callable[..., tuple[int, str, str]]
LABELS = ["dog", "[red]cat", "a car"]  # a label is no markup


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The program as the shell calls it, where `e` is an export and a.png a picture: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    write_export(tmp_path / "e")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save("a.png")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["d4c", "classify", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return call


def test_labels_stand_from_the_most_probable_to_the_least(run: Run) -> None:
    (expected,) = Session("e").classify("a.png", LABELS)
    code, out, err = run("e", "a.png", *LABELS)
    assert (code, err) == (0, "")
    places = [out.index(label) for label in expected]
    assert places == sorted(places)
    assert all(f"{p:.2%}" in out for p in expected.values())
    found = json.loads(run("e", "a.png", *LABELS, "--json", "--storage", "int8", "--threads", 1)[1])
    assert found == pytest.approx(expected)
    assert list(found) == list(expected)
    (other,) = Session("e").classify("a.png", LABELS, "{c}!")
    assert json.loads(run("e", "a.png", *LABELS, "--json", "--template", "{c}!")[1]) == pytest.approx(other)


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "labels", ["e", "a.png"]),
        (2, "no such folder: nowhere", ["nowhere", "a.png", "dog"]),
        (2, "is an artifact; make graphs of it first: d4c export artifact", ["artifact", "a.png", "dog"]),
        (2, "no such file: b.png", ["e", "b.png", "dog"]),
        (2, "a label is empty", ["e", "a.png", "dog", ""]),
        (2, "are the same to this model", ["e", "a.png", "dog", "DOG"]),
        (2, "template without {c}", ["e", "a.png", "dog", "--template", "dog"]),
        (2, "unknown storage 'int4'", ["e", "a.png", "dog", "--storage", "int4"]),
        (2, "--threads", ["e", "a.png", "dog", "--threads", "0"]),
        (1, "not a picture that can be read", ["e", "e/text.onnx", "dog"]),
        (1, "there is no d4c.json", [".", "a.png", "dog"]),
        (1, "image.onnx is damaged", ["damaged", "a.png", "dog"]),
    ],
)
def test_what_is_wrong_is_one_line(code: int, words: str, arguments: list[str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text("{}")
    damaged = write_export(tmp_path / "damaged") / "image.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    ended, out, err = run(*arguments)
    assert (ended, out) == (code, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert words in err


def test_it_loads_no_torch(run: Run) -> None:
    program = "import sys, d4c.cli.main as m\ntry: m.main()\nexcept SystemExit as e: assert not e.code\n"
    program += "assert not {'torch', 'open_clip'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program, "classify", "e", "a.png", "dog"], check=True, capture_output=True)

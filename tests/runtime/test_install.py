"""The wheel beside nothing but what the runtime needs."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d4c.runtime import Session

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from d4c.runtime import Session

session = Session(sys.argv[1])
found = session.classify(sys.argv[2], ["dog", "ça 狗"])  # without ftfy, which mends texts
assert session.encode_image(sys.argv[2]).shape == (1, 8)
heavy = [m for m in ("torch", "typer", "rich", "yaml", "safetensors", "onnx", "open_clip") if m in sys.modules]
assert not heavy, heavy
print(json.dumps(found))
"""


@pytest.mark.slow  # and fetches packages from the index that pip has
def test_the_wheel_runs_beside_onnxruntime_tokenizers_numpy_and_pillow(export: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> str:
        done = subprocess.run([*map(str, arguments)], check=True, capture_output=True, text=True, cwd=tmp_path)
        return done.stdout

    source = tmp_path / "source"  # building leaves files beside what is built
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source)
    (wheel,) = tmp_path.glob("d4c-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    call(*install, "onnxruntime", "numpy", "pillow")
    call(*install, "--no-deps", "tokenizers", wheel)  # tokenizers asks for the hub's client and all that this needs
    there = {about["name"].lower() for about in json.loads(call(python, "-m", "pip", "list", "--format", "json"))}
    assert not there & {"torch", "safetensors", "pyyaml", "typer", "rich", "onnx", "ftfy", "huggingface-hub"}

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    (expected,) = Session(export).classify(tmp_path / "a.png", ["dog", "ça 狗"])
    (found,) = json.loads(call(python, "-c", PROGRAM, export, tmp_path / "a.png"))
    assert found == pytest.approx(expected, abs=1e-5)
    printed = call(python, "-m", "d4c.runtime", export, tmp_path / "a.png", "dog", "ça 狗", "--json")
    assert json.loads(printed) == pytest.approx(expected, abs=1e-5)

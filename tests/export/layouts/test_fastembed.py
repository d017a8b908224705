"""fastembed itself, in an environment of its own, reads the folder."""

import json
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import d4c
from d4c.artifact import Exported
from d4c.export.layouts.to_fastembed import CLIP_NAMES, PADDED_NAMES
from export.layouts.models import centred_error, drawn_picture

pytestmark = pytest.mark.slow
VERSION = "0.9.1"
Exports = Callable[..., tuple[Path, Exported]]


@pytest.fixture(scope="session")
def fastembed_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment with fastembed, kept in pytest's cache."""
    folder = Path(request.config.cache.mkdir(f"fastembed-{VERSION}"))
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"fastembed=={VERSION}"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"fastembed {VERSION} cannot be installed; is the network there? {done.stderr[-300:]}")
        (folder / "ready").touch()
    return python


@pytest.mark.parametrize(("kind", "names"), [
    ("vit", CLIP_NAMES), ("resnet", CLIP_NAMES), ("siglip", PADDED_NAMES),
])  # fmt: skip
def test_fastembed_embeds_as_the_graphs_do(
    exports: Exports, artifacts: Callable[[str, str], Path], fastembed_python: Path, tmp_path: Path, kind: str,
    names: tuple[str, str],
) -> None:  # fmt: skip
    folder, exported = exports(kind, "fastembed")
    # Of 2:3 and 3:2, so that an even number of pixels is cropped: of an odd one fastembed keeps another middle.
    pictures = [drawn_picture(i, (40 + 4 * i, 60 + 6 * i)[:: -1 if i % 2 else 1]) for i in range(12)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    texts = ["a photo of a cat.", "two dogs on a beach", "word " * 100, "b"]
    job = {"pictures": [str(tmp_path / f"{i}.png") for i in range(12)], "texts": texts}
    (tmp_path / "job.json").write_text(json.dumps(job))
    reader = Path(__file__).with_name("fastembed_reader.py")
    command = [fastembed_python, reader, folder, *names, tmp_path / "job.json", tmp_path / "out.npz"]
    subprocess.run(command, check=True, env={"PATH": "/nowhere", "HF_HUB_OFFLINE": "1"})
    found = np.load(tmp_path / "out.npz")
    clip = d4c.load_quantized(artifacts(kind, "w4a8"))
    pixels, ids = np.stack([clip.preprocess(picture) for picture in pictures]), clip.tokenizer(texts)
    for tower, name, given in ((exported.image, "images", pixels), (exported.text, "texts", ids)):
        session = onnxruntime.InferenceSession(folder / tower.file)
        (expected,) = session.run([tower.output], {tower.input: given})
        assert np.allclose(np.linalg.norm(found[name], axis=1), 1, atol=1e-5)
        assert centred_error(found[name], expected) < 1e-4

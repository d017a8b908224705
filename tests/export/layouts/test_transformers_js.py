"""transformers.js itself, in Node and in WebAssembly, reads the folder."""

import functools
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import d4c
from d4c.inputs import Preprocess, Tokenizer
from d4c.pipeline import export_model
from export.layouts.models import centred_error, drawn_picture, unit

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).with_name("node")
SUFFIXES = {"q8": "_quantized", "q4": "_q4", "fp32": ""}
LABELS = ["a circle", "a bar", "the sky", "a dog"]
TEMPLATE = "a photo of {}."
TEXTS = ["a photo of a cat.", "It's 123 CAFÉS, \t and more", "dog", "two birds in a tree 😀"]
QUICK = ("synthesize.images=16", "reconstruct.method=none")


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """(script, job) -> what it wrote; the packages are kept in pytest's cache."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.fail("node and npm are not installed; transformers.js needs Node 20 or newer (https://nodejs.org)")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < 20:
        pytest.fail(f"node is {version}; transformers.js needs Node 20 or newer")
    lock = hashlib.sha256((PROJECT / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = Path(request.config.cache.mkdir(f"node-{lock}"))
    if not (folder / "ready").exists():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PROJECT / name, folder)
        # The only script fetches CUDA libraries, from elsewhere than npm's registry.
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"npm ci failed; is the network there? {done.stderr[-300:]}")
        (folder / "ready").touch()

    def run(script: str, job: dict[str, Any]) -> dict[str, Any]:
        shutil.copy(PROJECT / script, folder)
        path = Path(job["out"]).with_suffix(".job.json")
        path.write_text(json.dumps(job))
        done = subprocess.run([program, folder / script, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(Path(job["out"]).read_text())

    return run


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(bundled model, recipe or "float") -> its export, in the words of transformers.js: a name in a folder."""
    base = tmp_path_factory.mktemp("exported")

    @functools.cache
    def folder(name: str, recipe: str) -> Path:
        model = name
        if recipe != "float":
            model = str(base.with_name(f"{base.name}-artifacts") / f"{name}-{recipe}")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("D4C_CACHE", str(base.with_name(f"{base.name}-cache")))
                d4c.quantize(name, recipe=recipe, out=model, images="dead_leaves", overrides=QUICK)
        return export_model(model, "huggingface", out=base / f"{name}-{recipe}")[1]

    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Pictures of the model's own size, and larger ones."""
    folder = tmp_path_factory.mktemp("pictures")
    paths: dict[str, list[Path]] = {"own size": [], "larger": []}
    for kind, size in (("own size", (64, 64)), ("larger", (200, 150))):
        for i in range(8):
            paths[kind].append(folder / f"{kind.replace(' ', '-')}-{i}.png")
            drawn_picture(i, size).save(paths[kind][-1])
    return paths


def hundred() -> NDArray[np.float32]:
    """[100, 3, 64, 64] in normalised space."""
    return np.stack([Preprocess(64)(drawn_picture(1000 + i, (64, 64))) for i in range(100)])


def run_graph(path: Path, output: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options).run([output], inputs)[0]


def job_of(folder: Path, paths: list[Path], tmp_path: Path, dtype: str | None) -> dict[str, Any]:
    pixels = hundred()
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    return {
        "root": f"{folder.parent}/", "name": folder.name, "dtype": dtype, "labels": LABELS, "template": TEMPLATE,
        "pictures": [str(path) for path in paths], "texts": TEXTS, "pixels": str(tmp_path / "pixels"),
        "count": len(pixels), "size": 64, "out": str(tmp_path / "out.json"),
    }  # fmt: skip


def scores(folder: Path, suffix: str, pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over the labels, [picture, label], from both towers' graphs."""
    ids = Tokenizer.from_folder(folder)([TEMPLATE.replace("{}", label) for label in LABELS])
    image = unit(run_graph(folder / f"onnx/vision_model{suffix}.onnx", "image_embeds", pixel_values=pixels))
    text = unit(run_graph(folder / f"onnx/text_model{suffix}.onnx", "text_embeds", input_ids=ids))
    logits = json.loads((folder / "d4c.json").read_text())["logit_scale"] * (image @ text.T).astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("name", "recipe", "dtype"), [
    ("tiny", "w4a8", "q8"), ("tiny", "w4a8", "q4"), ("tiny-rn", "w4a8", "q8"), ("tiny-rn", "w4a8", "q4"),
    ("tiny", "w8a8", None), ("tiny", "float", None),
])  # fmt: skip
def test_node_computes_what_python_does(
    node: Callable[..., dict[str, Any]], folders: Callable[[str, str], Path], pictures: dict[str, list[Path]],
    tmp_path: Path, name: str, recipe: str, dtype: str | None,
) -> None:  # fmt: skip
    folder = folders(name, recipe)
    suffix = SUFFIXES[dtype or ("fp32" if recipe == "float" else "q8")]
    found = node("run.mjs", job_of(folder, pictures["own size"], tmp_path, dtype))
    images = run_graph(folder / f"onnx/vision_model{suffix}.onnx", "image_embeds", pixel_values=hundred())
    assert centred_error(np.array(found["image_embeds"], np.float32), images) < 1e-4
    ids, own = np.array(found["ids"]), Tokenizer.from_folder(folder)(TEXTS)
    for row, expected in zip(ids, own, strict=True):
        end = int(expected.argmax()) + 1
        assert row[:end].tolist() == expected[:end].tolist()
    texts = run_graph(folder / f"onnx/text_model{suffix}.onnx", "text_embeds", input_ids=own)
    assert centred_error(np.array(found["text_embeds"], np.float32), texts) < 1e-4
    preprocess = Preprocess.from_folder(folder)
    pixels = np.stack([preprocess(drawn_picture(i, (64, 64))) for i in range(8)])
    assert np.abs(np.array(found["prepared"]).reshape(pixels.shape) - pixels).max() < 1e-5  # nothing to resize
    given = np.array([[{s["label"]: s["score"] for s in row}[label] for label in LABELS] for row in found["scores"]])
    assert np.abs(given - scores(folder, suffix, pixels)).max() < 1e-4
    assert all(row[0]["score"] == max(s["score"] for s in row) for row in found["scores"])


def test_larger_pictures_are_resized_in_another_way_and_nothing_else_differs(
    node: Callable[..., dict[str, Any]], folders: Callable[[str, str], Path], pictures: dict[str, list[Path]],
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = folders("tiny", "w4a8")
    job = job_of(folder, pictures["larger"], tmp_path, "q8")
    ours = np.stack([Preprocess.from_folder(folder)(drawn_picture(i, (200, 150))) for i in range(8)])
    vision = folder / "onnx/vision_model_quantized.onnx"
    expected = run_graph(vision, "image_embeds", pixel_values=ours)
    errors = {}
    for resample in (None, 1):
        found = node("run.mjs", job | {"resample": resample})
        theirs = np.array(found["prepared"], np.float32).reshape(ours.shape)
        given = np.array([[{s["label"]: s["score"] for s in r}[label] for label in LABELS] for r in found["scores"]])
        assert np.abs(given - scores(folder, "_quantized", theirs)).max() < 1e-4  # from their pixels: the same
        errors[resample] = centred_error(run_graph(vision, "image_embeds", pixel_values=theirs), expected)
    assert errors[1] < errors[None] / 1.5  # Lanczos, as the documentation advises, lies nearer to Pillow's bicubic
    assert errors[1] < 0.25


def test_a_text_longer_than_the_context_loses_its_end_there(
    node: Callable[..., dict[str, Any]], folders: Callable[[str, str], Path], pictures: dict[str, list[Path]],
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = folders("tiny", "w4a8")
    job = job_of(folder, pictures["own size"][:1], tmp_path, "q8") | {"texts": ["dog " * 100]}
    (ids,) = node("run.mjs", job)["ids"]
    assert len(ids) == 77
    assert 49407 not in ids  # the limit that the card and the documentation tell


@pytest.mark.parametrize(("name", "recipe", "suffix", "bound"), [
    ("tiny", "float", "", 1e-5),
    ("tiny-rn", "float", "", 1e-5),
    # Sums of floats in another order move some values over to the next code, as between two levels of optimisation.
    ("tiny", "w4a8", "_quantized", 0.02),
    ("tiny", "w4a8", "_q4", 0.02),
    ("tiny-rn", "w4a8", "_quantized", 0.02),
    ("tiny-rn", "w4a8", "_q4", 0.02),
])  # fmt: skip
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_webassembly_computes_what_python_does(
    node: Callable[..., dict[str, Any]], folders: Callable[[str, str], Path], tmp_path: Path, name: str, recipe: str,
    suffix: str, bound: float, tower: str,
) -> None:  # fmt: skip
    folder = folders(name, recipe)
    if tower == "vision":
        given, input_, output = hundred(), "pixel_values", "image_embeds"
    else:
        given, input_, output = Tokenizer.from_folder(folder)([*TEXTS, *LABELS]), "input_ids", "text_embeds"
    (tmp_path / "data").write_bytes(given.tobytes())
    graph = folder / f"onnx/{tower}_model{suffix}.onnx"
    job = {"graph": str(graph), "input": input_, "output": output, "type": str(given.dtype), "shape": given.shape}
    found = node("wasm.mjs", job | {"data": str(tmp_path / "data"), "out": str(tmp_path / "out.json")})
    values = np.array(found["values"], np.float32).reshape(found["shape"])
    assert centred_error(values, run_graph(graph, output, **{input_: given})) < bound

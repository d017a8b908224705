import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import d4c
from d4c import package, pipeline, reconstruct
from d4c.errors import ArtifactError, RecipeError, UsageError
from d4c.images import ImageSet
from d4c.models.folding import fold_batchnorm
from d4c.pipeline.budget import uniform_schemes
from d4c.recipes import load_recipe, recipe_names

SMALL = ("synthesize.images=4", "synthesize.batch=2", "synthesize.steps=3", "calibrate.texts=8")
LEARNING = ("reconstruct.method=adaround", "reconstruct.iterations=4", "reconstruct.batch=4")


def quantize(folder: Path, out: Path, recipe: str = "w4a8", *more: str, **arguments: object) -> d4c.QuantizedClip:
    overrides = (*SMALL, *(LEARNING if recipe.startswith("paper") else ()), *more)
    return d4c.quantize(f"local-dir:{folder}", recipe=recipe, out=out, device="cpu", overrides=overrides, **arguments)  # type: ignore[arg-type]


def content(out: Path) -> str:
    return str(json.loads((out / "manifest.json").read_text())["content_sha256"])


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_every_recipe_gives_an_artifact_that_loads_bit_identically(
    recipe: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path, pixels: Tensor, ids: Tensor
) -> None:
    clip = quantize(request.getfixturevalue(f"{kind}_folder"), tmp_path / "out", recipe)
    again = d4c.load_quantized(tmp_path / "out")
    assert torch.equal(clip.encode_image(pixels), again.encode_image(pixels))
    assert torch.equal(clip.encode_text(ids), again.encode_text(ids))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["size"]["ratio"] == pytest.approx((tmp_path / "out" / "model.safetensors").stat().st_size
                                                    / report["size"]["before_bytes"], rel=0.05)  # fmt: skip
    assert not (tmp_path / "out.work").exists()


def test_w8a8_is_close_to_float(resnet_folder: Path, tmp_path: Path, ids: Tensor) -> None:
    quantized, clip = quantize(resnet_folder, tmp_path / "out", "w8a8"), d4c.load(f"local-dir:{resnet_folder}")
    texts = clip.encode_text(ids)
    assert (quantized.encode_text(ids) - texts).norm() / (texts - texts.mean(0)).norm() < 0.1


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
def test_siglip_s_pool_is_quantized_and_its_artifact_evaluated(
    recipe: str, siglip_folder: Path, tmp_path: Path, pixels: Tensor
) -> None:
    quantized = quantize(siglip_folder, tmp_path / "out", recipe)
    clip = d4c.load(f"local-dir:{siglip_folder}")
    assert {"image.pool.q", "image.pool.mlp.fc2", "image.patch_embedding"} <= quantized.quantized_weights().keys()
    assert {"image.pool.q_input", "image.pool.mlp.hidden"} <= quantized.tensor_quantizers().keys()
    assert (quantized.logit_bias, quantized.tokenizer("a cat").tolist()) == (-10, clip.tokenizer("a cat").tolist())
    pixels, ids = pixels.clamp(-1, 1), torch.from_numpy(clip.tokenizer(["cat", "a photo of a dog", ""]))
    again = d4c.load_quantized(tmp_path / "out")
    assert torch.equal(quantized.encode_image(pixels), again.encode_image(pixels))
    assert torch.equal(quantized.encode_text(ids), again.encode_text(ids))
    if recipe == "w8a8":
        images = clip.encode_image(pixels)
        error = (quantized.encode_image(pixels) - images).norm() / (images - images.mean(0)).norm()
        assert error < 0.2  # four images of three steps calibrate it
    figures = pipeline.evaluate_without_data(str(tmp_path / "out"), against=None, device="cpu", report=lambda *_: None)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["worst"] == report["evaluation"]["worst"]
    units = {unit["name"] for unit in report["reconstruction"]["units"]}
    assert {"image.pool.q", "image.pool.k+v", "image.pool.out", "image.pool.mlp.fc1", "image.pool.mlp.fc2"} <= units


def test_the_same_seed_gives_the_same_artifact_and_another_one_does_not(vit_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        quantize(vit_folder, tmp_path / name, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")


class Crash(BaseException):
    """Like a kill: nothing catches it."""


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize(
    ("stage", "share"),
    [("synthesize", 0.6), ("calibrate image", 0.5), ("calibrate weights", 0.5), ("reconstruct", 0.5)],
)
def test_a_run_that_crashed_continues_and_ends_with_the_same_content(
    stage: str, share: float, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(f"{kind}_folder")

    def crash(label: str, done: int, total: int) -> None:
        if label == stage and done >= share * total:
            raise Crash

    with pytest.raises(Crash):
        quantize(folder, tmp_path / "crashed", report=crash)
    assert not (tmp_path / "crashed").exists()
    quantize(folder, tmp_path / "crashed")
    quantize(folder, tmp_path / "whole")
    assert content(tmp_path / "crashed") == content(tmp_path / "whole")


@pytest.mark.parametrize(("recipe", "work"), [("w4a8", "solve_unit"), ("paper-w4a8", "learn")])
def test_finished_units_are_not_reconstructed_again(
    recipe: str, work: str, vit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = {"whole": 0, "out": 0, "resumed": 0}, getattr(reconstruct.towers, work)

    def run(name: str, report: Callable[[str, int, int], None] | None = None) -> None:
        def counted(*arguments: object, **named: object) -> object:
            calls[name] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(reconstruct.towers, work, counted)
        quantize(vit_folder, tmp_path / ("whole" if name == "whole" else "out"), recipe, report=report)

    def crash(label: str, done: int, total: int) -> None:
        if label == "reconstruct" and done >= 0.5 * total:
            raise Crash

    run("whole")
    with pytest.raises(Crash):
        run("out", crash)
    run("resumed")
    assert 0.3 * calls["whole"] < calls["resumed"] < 0.7 * calls["whole"]
    assert calls["whole"] <= calls["out"] + calls["resumed"] <= calls["whole"] + 1  # the unit that crashed, twice


def test_a_killed_process_leaves_what_the_same_command_continues(vit_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "d4c", "quantize", f"local-dir:{vit_folder}", "--threads", "1", "--device", "cpu"]
    command += [part for pair in SMALL for part in ("--set", pair)]
    work = tmp_path / "killed.work"
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    while not list(work.glob("reconstruct-*/*.safetensors")):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "whole"):
        subprocess.run([*command, "--out", str(tmp_path / name)], check=True, capture_output=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_finished_artifact_is_left_alone_unless_fresh(vit_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize(vit_folder, out)
    before = (out / "manifest.json").stat().st_mtime_ns
    quantize(vit_folder, out)
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="other settings"):
        quantize(vit_folder, out, seed=3)
    quantize(vit_folder, out, seed=3, fresh=True)
    assert json.loads((out / "manifest.json").read_text())["seed"] == 3


def test_a_folder_that_is_no_artifact_is_never_touched(vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not an artifact"):
        quantize(vit_folder, tmp_path, fresh=True)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_another_programs_manifest_makes_no_artifact(vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(UsageError, match="not an artifact"):
        quantize(vit_folder, tmp_path / "app", fresh=True)
    assert (tmp_path / "app" / "manifest.json").read_text() == '{"name": "web app"}'


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_beside_that_no_run_left_is_never_touched(vit_folder: Path, tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"thesis\.txt is no unfinished work"):
        quantize(vit_folder, tmp_path / "out", fresh=fresh)
    assert (tmp_path / "out.work" / "thesis.txt").read_text() == "precious"


def test_a_damaged_artifact_is_not_taken_for_a_finished_one(vit_folder: Path, tmp_path: Path) -> None:
    quantize(vit_folder, tmp_path / "out", "w8", images="noise")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.safetensors is damaged"):
        quantize(vit_folder, tmp_path / "out", "w8", images="noise")


def test_a_broken_result_of_a_stage_is_made_again(vit_folder: Path, tmp_path: Path) -> None:
    def crash(label: str, *_: int) -> None:
        if label == "reconstruct":
            raise Crash

    with pytest.raises(Crash):
        quantize(vit_folder, tmp_path / "out", report=crash)
    results = list((tmp_path / "out.work").glob("*/result.safetensors"))
    assert len(results) == 2  # images and ranges
    for path in results:
        path.write_bytes(path.read_bytes()[:100])
    quantize(vit_folder, tmp_path / "out")
    quantize(vit_folder, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_pictures_of_the_users_own_are_used(vit_folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i in range(7):
        Image.new("RGB", (40, 30), (30 * i, 20, 200)).save(tmp_path / "pictures" / f"{i}.png")
    for name, seed in (("out", 0), ("other", 1)):  # of seven, the seed draws the four that the recipe wants
        quantize(vit_folder, tmp_path / name, images=str(tmp_path / "pictures"), keep_images=True, seed=seed)
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["images"] == {"source": "folder", "count": 4, "left_out": 0}
    drawn = [ImageSet.load(tmp_path / f"{name}.work" / "images.safetensors").pixels for name in ("out", "other")]
    assert not torch.equal(*drawn)


def test_an_image_on_which_the_model_runs_away_changes_nothing_and_is_counted(
    resnet_folder: Path, tmp_path: Path, pixels: Tensor
) -> None:
    usual = ImageSet.unlabelled(pixels.repeat(2, 1, 1, 1)[:11], "test")
    odd = ImageSet.unlabelled(torch.cat([usual.pixels[:5], 1000 * pixels[:1], usual.pixels[5:]]), "test")
    for name, images in (("usual", usual), ("odd", odd)):
        job = pipeline.prepare(
            f"local-dir:{resnet_folder}", recipe="w8a8", out=tmp_path / name, pretrained=None, images=None,
            prompts=None, device="cpu", seed=0, overrides=SMALL, fresh=False, keep_images=False,
        )  # fmt: skip
        report = pipeline.run(dataclasses.replace(job, images=images))
        assert report is not None
        assert report["images"] == {"source": "test", "count": 11, "left_out": len(images) - 11}
    assert content(tmp_path / "odd") == content(tmp_path / "usual")


def test_evaluation_needs_the_model_that_the_artifact_came_from(
    vit_folder: Path, resnet_folder: Path, tmp_path: Path
) -> None:
    quantize(vit_folder, tmp_path / "out")
    with pytest.raises(UsageError, match="--against"):
        pipeline.evaluate_without_data(
            str(tmp_path / "out"), against=f"local-dir:{resnet_folder}", device="cpu", report=lambda *_: None
        )
    figures = pipeline.evaluate_without_data(str(tmp_path / "out"), against=None, device="cpu", report=lambda *_: None)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["worst"] == report["evaluation"]["worst"]


def test_evaluation_holds_out_what_was_held_out(vit_folder: Path, tmp_path: Path) -> None:
    names = [f"thing {i}" for i in range(16)]
    (tmp_path / "mine.json").write_text(json.dumps({"classnames": names, "templates": ["a {c}"]}))
    quantize(vit_folder, tmp_path / "out", "w8", images="noise", prompts=tmp_path / "mine.json")
    figures = pipeline.evaluate_without_data(str(tmp_path / "out"), against=None, device="cpu", report=lambda *_: None)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures == report["evaluation"]


def test_synthesized_images_continue_after_a_crash(vit_folder: Path, tmp_path: Path) -> None:
    def make(out: Path, report: d4c.artifact.work.Report) -> Tensor:
        return pipeline.synthesize_to_folder(
            f"local-dir:{vit_folder}", out=out, recipe="w4a8", pretrained=None, prompts=None, device="cpu", seed=0,
            overrides=SMALL, fresh=False, report=report,
        ).pixels  # fmt: skip

    def crash(_: str, done: int, total: int) -> None:
        if done > total / 2:
            raise Crash

    with pytest.raises(Crash):
        make(tmp_path / "crashed", crash)
    whole = make(tmp_path / "whole", lambda *_: None)
    assert torch.equal(make(tmp_path / "crashed", lambda *_: None), whole)
    assert {p.name for p in (tmp_path / "crashed").iterdir()} == {"images.safetensors", "contact_sheet.png"}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("recipe", ["w4a8", "w8"])
def test_a_size_budget_is_never_exceeded_and_spent(
    kind: str, recipe: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    with pytest.raises(UsageError, match="with 4 bits everywhere it takes"):
        quantize(folder, tmp_path / "none", recipe, size_budget=100_000)
    assert not any(tmp_path.iterdir())
    clip = fold_batchnorm(d4c.load(f"local-dir:{folder}"))
    least, most = (package.stored_bytes(clip, s) for s in uniform_schemes(clip, load_recipe(recipe)).values())
    sizes, low = [], []
    for i, share in enumerate((0, 0.3, 0.7, 1)):
        budget, out = int(least + share * (most - least)), tmp_path / str(i)
        quantize(folder, out, recipe, "reconstruct.method=none", size_budget=budget)  # rounding changes no size
        sizes.append((out / "model.safetensors").stat().st_size)
        assert 0.9 * budget < sizes[-1] <= budget
        weights = json.loads((out / "config.json").read_text())["quantization_config"]["weights"].values()
        low.append(sum(weight["bits"] == 4 for weight in weights))
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (least, most)
    assert low == sorted(low, reverse=True)
    assert low[0] > 0 == low[-1]


def test_a_simulation_has_no_size(vit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="simulation only"):
        quantize(vit_folder, tmp_path / "out", "w4a4", size_budget=10**9)


def test_names_that_judge_are_among_what_decides(vit_folder: Path, tmp_path: Path) -> None:
    names = ["teapot", "rake", "lamp", "boat", "tree", "cloud", "shoe", "violin"]  # the last is held out
    for last in ("violin", "piano"):
        prompts = {"templates": ["a {c}."], "classnames": [*names[:7], last]}
        (tmp_path / f"{last}.json").write_text(json.dumps(prompts))
    quantize(vit_folder, tmp_path / "out", "w8", images="noise", prompts=tmp_path / "violin.json")
    with pytest.raises(UsageError, match="other settings"):
        quantize(vit_folder, tmp_path / "out", "w8", images="noise", prompts=tmp_path / "piano.json")


def test_starting_over_and_interrupted_while_removing_leaves_what_can_be_continued(
    vit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    quantize(vit_folder, out, "w8", images="noise")
    before = content(out)
    original = shutil.rmtree

    def cut(folder: Path, **named: Any) -> None:
        if (Path(folder) / "artifact").exists():
            (Path(folder) / "artifact" / "manifest.json").unlink()
            raise Crash
        original(folder, **named)

    monkeypatch.setattr(shutil, "rmtree", cut)
    with pytest.raises(Crash):
        quantize(vit_folder, out, "w8", images="noise", fresh=True)
    monkeypatch.undo()
    quantize(vit_folder, out, "w8", images="noise")
    assert content(out) == before

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from d4c.cli.main import main
from d4c.recipes import recipe_names

Run = Callable[..., str]
SMALL = [x for o in ("images=4", "batch=2", "steps=2") for x in ("--set", f"synthesize.{o}")]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """A command that succeeds, in a folder of its own: its stdout."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["d4c", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        assert exit_.value.code == 0, captured.err
        return captured.out

    return call


def test_quantize_then_inspect_then_evaluate(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    command = ["quantize", f"local-dir:{vit_folder}", "--out", "a", "--set", "reconstruct.iterations=2", *SMALL]
    table = run(*command)
    assert "a/contact_sheet.png" in table
    summary = json.loads(run(*command, "--json"))  # finished: only reported
    assert (tmp_path / summary["folder"] / "contact_sheet.png").exists()
    about = json.loads(run("inspect", "a", "--json", "--sites"))
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert about["content_sha256"] == manifest["content_sha256"]
    assert about["coverage"]["block_share_at_4_bits"] >= 0.95
    assert manifest["content_sha256"] in run("inspect", "a")
    figures = json.loads(run("evaluate", "a", "--json"))
    assert figures["worst"] == summary["evaluation"]["worst"]


def test_default_folder_is_model_and_recipe(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to(vit_folder)
    quick = ["--set", "synthesize.images=2", "--set", "reconstruct.method=none"]
    run("quantize", "local-dir:m", "--recipe", "w8", "--images", "noise", *quick)
    assert (tmp_path / "local-dir-m-w8" / "manifest.json").exists()


def test_synthesize_writes_images_and_their_sheet(run: Run, resnet_folder: Path, tmp_path: Path) -> None:
    about = json.loads(run("synthesize", f"local-dir:{resnet_folder}", "--out", "s", "--json", *SMALL))
    assert about["images"] == 4
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"images.safetensors", "contact_sheet.png"}


def test_recipes_lists_all_and_prints_one_that_loads_again(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    assert [r["name"] for r in json.loads(run("recipes", "--json"))] == recipe_names()
    (tmp_path / "my.toml").write_text(run("recipes", "w4a8").replace("iterations = 1000", "iterations = 2"))
    run("quantize", f"local-dir:{vit_folder}", "--recipe", "my.toml", "--out", "a", *SMALL)
    assert "iterations = 2" in (tmp_path / "a" / "recipe.toml").read_text()


def test_models_lists_names_and_tags(run: Run) -> None:
    names = json.loads(run("models", "--json"))
    assert {"tiny", "tiny-rn"} <= set(names["bundled"])
    assert len(names["OpenAI"]) == 9
    assert "laion2b_s34b_b79k" in json.loads(run("models", "ViT-B-32", "--json"))["tags"]

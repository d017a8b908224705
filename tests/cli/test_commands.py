import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from d4c.cli.main import main
from d4c.recipes import recipe_names
from evaluate.painter import COLOURS, flat, write_set

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
    command = ["quantize", f"local-dir:{vit_folder}", "--out", "a", *SMALL]
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


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_evaluate_on_a_set_of_classes_and_on_one_of_captions(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    pictures = [flat(colour) for colour in COLOURS.values()]
    write_set(tmp_path / "d" / "wds_colours", [(p, str(i)) for i, p in enumerate(pictures)])
    said = list(zip(pictures, COLOURS, strict=True))
    write_set(tmp_path / "d" / "said", said, label="txt", names=None, templates=None, kind="retrieval")
    (tmp_path / "d" / "said" / "test").rename(tmp_path / "d" / "said" / "val")
    quick = ["--set", "synthesize.images=2", "--set", "reconstruct.method=none"]
    run("quantize", f"local-dir:{vit_folder}", "--recipe", "w8", "--images", "noise", "--out", "a", *quick)
    colours = ["--dataset", "wds/colours", "--root", "d"]
    captions = ["--dataset", "wds/said", "--root", "d", "--split", "val", "--recall-k", "6,1"]
    for model, count in ((f"local-dir:{vit_folder}", 1), ("a", 2)):
        assert len(json.loads(run("evaluate", model, *colours, "--json"))["results"]) == count
        (metrics, *_) = [r["metrics"] for r in json.loads(run("evaluate", model, *captions, "--json"))["results"]]
        assert [*metrics] == [f"{way}_retrieval_recall@{k}" for k in (1, 6) for way in ("image", "text")]
        assert metrics["text_retrieval_recall@6"] == 1
    table = run("evaluate", "a", *captions)
    assert "image_retrieval_recall@6" in table
    assert "changed hits" in table
    assert "changed predictions" in run("evaluate", "a", *colours)
    gc.collect()


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
    (tmp_path / "my.toml").write_text(run("recipes", "w4a8").replace("refits = 1", "refits = 0"))
    run("quantize", f"local-dir:{vit_folder}", "--recipe", "my.toml", "--out", "a", *SMALL)
    assert "refits = 0" in (tmp_path / "a" / "recipe.toml").read_text()


def test_models_lists_names_and_tags(run: Run) -> None:
    names = json.loads(run("models", "--json"))
    assert {"tiny", "tiny-rn"} <= set(names["bundled"])
    assert len(names["OpenAI"]) == 9
    assert "laion2b_s34b_b79k" in json.loads(run("models", "ViT-B-32", "--json"))["tags"]
    for name in names["OpenAI"]:
        assert "openai" in json.loads(run("models", name, "--json"))["tags"]

"""`d4c export` as the shell calls it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def artifact(vit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A recipe's artifact of the small ViT, made when it is first asked for; copies may be changed."""
    base = tmp_path_factory.mktemp("artifacts")

    def make(recipe: str) -> Path:
        import d4c

        out = base / recipe
        if not out.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("D4C_CACHE", str(base / "cache"))
                quick = ("synthesize.images=2", "reconstruct.method=none", "calibrate.texts=8")
                d4c.quantize(f"local-dir:{vit_folder}", recipe=recipe, out=out, images="noise", overrides=quick)
        return out

    return make


def refused(run: Run, tmp_path: Path, code: int, words: str, *arguments: object) -> None:
    """Ends with this code and one line that holds these words; nothing is written."""
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    ended, out, err = run(*arguments)
    assert (ended, out) == (code, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert words in err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_the_folder_lies_beside_the_artifact_and_its_files_are_listed(
    run: Run, artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(artifact("w4a8"), tmp_path / "a")
    code, out, _ = run("export", "a/")
    assert code == 0
    assert (tmp_path / "a-onnx" / "image.onnx").is_file()
    for words in ("image.onnx", "text.onnx", "MB", "Next: d4c classify a-onnx"):
        assert words in out


def test_json_tells_every_file_and_what_d4c_json_says(
    run: Run, artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    code, out, _ = run("export", artifact("w4"), "--layout", "open_clip", "--out", "o", "--json")
    about = json.loads(out)
    assert code == 0
    assert about["folder"] == "o"
    assert about["files"] == {p.name: p.stat().st_size for p in (tmp_path / "o").iterdir()}
    assert about["d4c.json"] == json.loads((tmp_path / "o" / "d4c.json").read_text())
    assert "local-dir:o" in run("export", artifact("w4"), "--layout", "open_clip", "--out", "o", "--fresh")[1]


def test_a_float_model_is_exported_by_its_name(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to(vit_folder)
    assert run("export", "local-dir:m", "--layout", "immich")[0] == 0
    about = json.loads((tmp_path / "local-dir-m-immich" / "d4c.json").read_text())
    assert (about["recipe"], about["artifact"], about["content_sha256"]) == ("float", None, None)


def test_what_is_wrong_with_arguments_is_code_2(run: Run, artifact: Callable[[str], Path], tmp_path: Path) -> None:
    whole, eight = artifact("w4a8"), artifact("w8a8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refused(run, tmp_path, 2, "did you mean 'huggingface'?", "export", whole, "--layout", "hugingface")
    refused(run, tmp_path, 2, "did you mean 'int4'?", "export", whole, "--storage", "in4")
    refused(run, tmp_path, 2, "--storage int4 is not possible", "export", eight, "--storage", "int4", "--out", "o")
    refused(run, tmp_path, 2, "is no exported folder", "export", whole, "--out", "mine", "--fresh")
    refused(run, tmp_path, 2, "cannot write", "export", whole, "--out", "mine/letter.txt/o")
    refused(run, tmp_path, 2, "unknown model 'nowhere'", "export", "nowhere")
    assert run("export", whole, "--out", "o")[0] == 0
    refused(run, tmp_path, 2, "--fresh replaces it", "export", whole, "--out", "o")


@pytest.mark.parametrize(("recipe", "layout", "words"), [
    ("w4a4", "onnx", "runs as simulation"),
    ("w4a4", "open_clip", "runs as simulation"),
    ("w4", "onnx", "--layout open_clip"),
])  # fmt: skip
def test_recipes_that_no_integer_kernel_computes_are_code_2(
    run: Run, artifact: Callable[[str], Path], tmp_path: Path, recipe: str, layout: str, words: str
) -> None:
    refused(run, tmp_path, 2, words, "export", artifact(recipe), "--layout", layout, "--out", "o")


def test_a_damaged_artifact_is_code_1(run: Run, artifact: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(artifact("w4a8"), tmp_path / "a")
    data = bytearray((tmp_path / "a" / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a" / "model.safetensors").write_bytes(data)
    refused(run, tmp_path, 1, "model.safetensors is damaged", "export", "a")
    (tmp_path / "a" / "manifest.json").unlink()
    refused(run, tmp_path, 1, "not an artifact", "export", "a")

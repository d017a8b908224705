import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import VIT
from d4c.artifact import FORMAT_VERSION, Artifact, read_artifact, read_manifest, write_artifact
from d4c.artifact.folder import file_sha256
from d4c.errors import ArtifactError
from d4c.inputs import Preprocess, Tokenizer

CONTENT = (
    "config.json", "model.safetensors", "preprocessor_config.json", "recipe.toml", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip
EXTRA = ("README.md", "contact_sheet.png")
WEIGHTS = {
    "image.blocks.0.mlp.fc1": {"bits": 4, "shape": [6, 5]},
    "image.blocks.0.mlp.fc2": {"bits": 8, "shape": [5, 6]},
    "image.layer1.0.conv1": {"bits": 4, "shape": [2, 5, 1, 1]},
    "text.blocks.0.mlp.fc1": {"bits": 8, "shape": [10, 10]},
    "text.token_embedding": {"bits": 8, "shape": [7, 10]},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact that is written already; tests must not change its folder."""
    folder = tmp_path_factory.mktemp("artifacts") / "whole"
    artifact = Artifact(
        folder=folder,
        arrays={
            "a.weight": np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
            "a.packed": np.array([0x21, 0xFE], np.uint8),
            "a.bias": np.array([2**30, -5], np.int32),
            "a.weight_scale": np.array([0.1, 2e-30], np.float32),
            "logit_scale": np.array(4.6, np.float32),
            "none": np.zeros((0, 3), np.float32),
        },
        config={"architecture": VIT.to_dict(), "quantization_config": {"quant_method": "d4c", "weights": WEIGHTS}},
        recipe='name = "tést"\n',
        manifest={
            "format_version": FORMAT_VERSION,
            "parameters": 300,
            "source": "m",
            "fingerprint": "f",
            "threads": 1,
            "prompts": {},
            "versions": {},
            "stages": {},
        },
        preprocess=Preprocess(32, interpolation="bilinear"),
        tokenizer=Tokenizer.openai(12),
    )
    write(artifact)
    return artifact


def write(artifact: Artifact, **manifest: Any) -> dict[str, Any]:
    """Write with some extra files; returns the manifest."""
    extra = {"README.md": b"# card\n", "contact_sheet.png": b"\x89PNG"}
    write_artifact(artifact, artifact.folder.with_name("staging"), {"seed": 3, **manifest}, extra)
    return read_manifest(artifact.folder)


@pytest.fixture
def copy(whole: Artifact, tmp_path: Path) -> Path:
    """A folder of its own, to be damaged."""
    return Path(shutil.copytree(whole.folder, tmp_path / "copy"))


def test_read_gives_back_what_was_written(whole: Artifact) -> None:
    again = read_artifact(whole.folder)
    assert set(again.arrays) == set(whole.arrays)
    for name, array in whole.arrays.items():
        assert (again.arrays[name].dtype, again.arrays[name].shape) == (array.dtype, array.shape)
        assert again.arrays[name].tobytes() == array.tobytes()
    assert (again.folder, again.config, again.recipe) == (whole.folder, whole.config, whole.recipe)
    assert (again.architecture, again.preprocess) == (VIT, whole.preprocess)
    assert np.array_equal(again.tokenizer(["a cat", "x " * 50]), whole.tokenizer(["a cat", "x " * 50]))
    assert (again.manifest["seed"], again.manifest["parameters"]) == (3, 300)


def test_the_folder_holds_the_named_files_and_the_staging_folder_is_gone(whole: Artifact) -> None:
    assert {path.name for path in whole.folder.iterdir()} == {*CONTENT, *EXTRA, "manifest.json"}
    assert [path.name for path in whole.folder.parent.iterdir()] == ["whole"]


def test_the_manifest_tells_the_sha256_of_every_file(whole: Artifact) -> None:
    files = read_manifest(whole.folder)["files"]
    assert set(files) == {*CONTENT, *EXTRA}
    for name, given in files.items():
        assert hashlib.sha256((whole.folder / name).read_bytes()).hexdigest() == given


def test_file_sha256_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected


def test_content_sha256_is_that_of_sorted_names_and_sums(whole: Artifact) -> None:
    lines = [f"{name} {hashlib.sha256((whole.folder / name).read_bytes()).hexdigest()}\n" for name in sorted(CONTENT)]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert read_manifest(whole.folder)["content_sha256"] == expected


def test_content_sha256_does_not_see_how_the_artifact_was_made(whole: Artifact, tmp_path: Path) -> None:
    other = replace(whole, folder=tmp_path / "other", manifest={**whole.manifest, "seconds": 9.9})
    write_artifact(other, tmp_path / "staging", {"seed": 4}, {"README.md": b"# another\n"})
    manifest = read_manifest(other.folder)
    assert manifest["content_sha256"] == read_manifest(whole.folder)["content_sha256"]
    assert manifest["files"]["README.md"] != read_manifest(whole.folder)["files"]["README.md"]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: replace(a, arrays={**a.arrays, "a.bias": np.array([2**30, -4], np.int32)}),
        lambda a: replace(a, arrays={**a.arrays, "more": np.array([1], np.int8)}),
        lambda a: replace(a, config={**a.config, "model_type": "other"}),
        lambda a: replace(a, recipe=a.recipe + "\n"),
        lambda a: replace(a, preprocess=Preprocess(32)),
        lambda a: replace(a, tokenizer=Tokenizer.openai(13)),
    ],
    ids=["a bias", "a tensor more", "config", "recipe", "preprocessing", "tokenizer"],
)
def test_content_sha256_sees_every_change_of_content(
    whole: Artifact, tmp_path: Path, change: Callable[[Artifact], Artifact]
) -> None:
    manifest = write(replace(change(whole), folder=tmp_path / "other"))
    assert manifest["content_sha256"] != read_manifest(whole.folder)["content_sha256"]


@pytest.mark.parametrize("name", [*CONTENT, *EXTRA])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        read_artifact(copy)


@pytest.mark.parametrize("name", [*CONTENT, *EXTRA])
@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_one_flipped_byte_is_found(copy: Path, name: str, where: float) -> None:
    data = bytearray((copy / name).read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=f"{name} is damaged"):
        read_artifact(copy)


@pytest.mark.parametrize("name", [*CONTENT, *EXTRA])
def test_a_truncated_file_is_found(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=f"{name} is damaged"):
        read_artifact(copy)


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Set some keys, or take them away where the value is None."""
    manifest = {**json.loads((folder / "manifest.json").read_text()), **changes}
    manifest = {key: value for key, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "next"])
def test_another_format_version_is_refused_by_number(copy: Path, version: object) -> None:
    edit_manifest(copy, format_version=version)
    with pytest.raises(ArtifactError, match=f"format version {version}; this d4c reads version {FORMAT_VERSION}"):
        read_artifact(copy)


def test_a_folder_without_a_manifest_is_no_artifact(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").unlink()
    for folder in (copy, tmp_path / "none"):
        with pytest.raises(ArtifactError, match="not an artifact"):
            read_artifact(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'{"format_version": 1}', b"\xff\xfe{}"])
def test_a_broken_manifest_is_one_error(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read") as error:
        read_artifact(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("files", [{}, [], 3, "all", {"README.md": "0"}])
def test_a_manifest_that_vouches_for_nothing_is_refused(copy: Path, files: object) -> None:
    edit_manifest(copy, files=files)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_artifact(copy)


@pytest.mark.parametrize("name", CONTENT)
def test_a_manifest_that_does_not_vouch_for_a_content_file_is_refused(copy: Path, name: str) -> None:
    files = json.loads((copy / "manifest.json").read_text())["files"]
    del files[name]
    edit_manifest(copy, files=files)
    with pytest.raises(ArtifactError, match=f"SHA-256 of {name}"):
        read_artifact(copy)


@pytest.mark.parametrize("key", ["source", "fingerprint", "stages", "content_sha256"])
def test_a_manifest_without_a_key_is_damaged(copy: Path, key: str) -> None:
    edit_manifest(copy, **{key: None})
    with pytest.raises(ArtifactError, match=rf"manifest\.json is damaged, it lacks {key}"):
        read_artifact(copy)


def test_an_identity_that_is_not_that_of_the_files_is_refused(copy: Path) -> None:
    edit_manifest(copy, content_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="content_sha256 is not that of its files"):
        read_artifact(copy)


@pytest.mark.parametrize("architecture", [None, 3, {}, {**VIT.to_dict(), "embed_dim": None, "image": {"kind": "swin"}}])
def test_an_architecture_of_a_later_version_is_refused_when_asked_for(whole: Artifact, architecture: object) -> None:
    config = {k: v for k, v in {"architecture": architecture}.items() if v is not None}
    with pytest.raises(ArtifactError, match="no model this version knows"):
        _ = replace(whole, config=config).architecture


def test_leftovers_of_a_killed_run_are_not_packed(whole: Artifact, tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "half.safetensors").write_bytes(b"half")
    write(replace(whole, folder=tmp_path / "other"))
    assert not (tmp_path / "other" / "half.safetensors").exists()
    assert not (tmp_path / "staging").exists()


def test_a_run_that_fails_while_writing_leaves_no_artifact(whole: Artifact, tmp_path: Path) -> None:
    other = replace(whole, folder=tmp_path / "other")
    with pytest.raises(OSError, match="no_such_folder"):
        write_artifact(other, tmp_path / "staging", {}, {"no_such_folder/x": b""})
    assert not other.folder.exists()


def test_coverage_is_as_by_hand(whole: Artifact) -> None:
    coverage = whole.coverage()
    # 4 bits: 6x5 + 2x5; 8 bits: 5x6 + 10x10 + 7x10; of 300 parameters that leaves 60 in float.
    assert coverage["by_bits"] == {"4": 40, "8": 200, "32": 60}
    assert coverage["parameters"] == 300
    # Blocks and bottlenecks hold 30 + 30 + 10; the text MLP has 8 bits and does not count; 40 of 70 have 4.
    assert coverage["block_share_at_4_bits"] == pytest.approx(40 / 70)


def test_coverage_without_a_block_is_no_share(whole: Artifact) -> None:
    config = {
        **whole.config,
        "quantization_config": {"weights": {"text.token_embedding": {"bits": 4, "shape": [5, 2]}}},
    }
    assert replace(whole, config=config).coverage()["block_share_at_4_bits"] == 0

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import pretrained
from safetensors.torch import save_file

from d4c.errors import ModelFileError, UnknownNameError, UsageError
from d4c.models import Clip, load
from d4c.models.load import bundled_folder, prompts_beside
from d4c.models.names import BUNDLED, OPENAI_NAMES
from models.oracle import OPENAI_RESNET, OPENAI_VIT, VIT, open_clip_model, openai_state, write_folder

loading = importlib.import_module("d4c.models.load")  # the package's name `load` is the function


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub folders that were asked for; nothing is fetched."""
    hubs: list[str] = []

    def download(tag_cfg: dict[str, Any]) -> str:
        hubs.append(tag_cfg["hf_hub"])
        raise OSError("no network")

    monkeypatch.setattr(pretrained, "download_pretrained", download)
    return hubs


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_name_is_an_open_clip_folder(
    name: str, vit_folder: Path, tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "bundled_folder", {name: vit_folder}.__getitem__)
    clip = load(name)
    assert (clip.source, clip.fingerprint) == (name, tiny_clip.fingerprint)


def test_a_bundled_model_that_is_not_installed_is_a_model_file_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundled" / "tiny").mkdir(parents=True)
    monkeypatch.setattr(loading.resources, "files", lambda _: tmp_path)
    assert bundled_folder("tiny") == tmp_path / "bundled" / "tiny"
    with pytest.raises(ModelFileError, match="does not carry the bundled model tiny-rn"):
        load("tiny-rn")


def test_a_local_folder_is_loaded(vit_folder: Path, tiny_clip: Clip) -> None:
    clip = load(f"local-dir:{vit_folder}")
    assert (clip.source, clip.fingerprint) == (f"local-dir:{vit_folder}", tiny_clip.fingerprint)
    assert clip.config == tiny_clip.config


@pytest.mark.parametrize("config", [OPENAI_VIT, OPENAI_RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_is_loaded(config: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    state, path = openai_state(open_clip_model(config)), tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    clip = load(str(path))
    assert clip.source == str(path)
    assert clip.config.embed_dim == config["embed_dim"]


@pytest.mark.parametrize(
    ("name", "hub"),
    {
        "RN50": "resnet50_clip",
        "RN101": "resnet101_clip",
        "RN50x4": "resnet50x4_clip",
        "RN50x16": "resnet50x16_clip",
        "RN50x64": "resnet50x64_clip",
        "ViT-B/32": "vit_base_patch32_clip_224",
        "ViT-B/16": "vit_base_patch16_clip_224",
        "ViT-L/14": "vit_large_patch14_clip_224",
        "ViT-L/14@336px": "vit_large_patch14_clip_336",
    }.items(),
)
def test_an_openai_name_asks_for_openai_s_weights(name: str, hub: str, asked: list[str]) -> None:
    assert name in OPENAI_NAMES
    assert len(OPENAI_NAMES) == 9
    for tag in (None, "openai"):
        with pytest.raises(ModelFileError, match="cannot fetch the weights"):
            load(name, tag)
    assert asked == [f"timm/{hub}.openai/"] * 2


@pytest.mark.parametrize(
    ("name", "tag", "hub"),
    [
        ("ViT-B-32__laion2b_s34b_b79k", None, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/"),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/"),
        ("ViT-B-32", "laion2B-s34B-b79K", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/"),  # open_clip reads tags so
        ("ViT-B/32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/"),
        ("RN50", "yfcc15m", "timm/resnet50_clip.yfcc15m/"),
        ("RN50__cc12m", None, "timm/resnet50_clip.cc12m/"),
        ("RN50-quickgelu__cc12m", None, "timm/resnet50_clip.cc12m/"),
    ],
)
def test_a_registered_name_and_its_tag_in_every_spelling(
    name: str, tag: str | None, hub: str, asked: list[str]
) -> None:
    with pytest.raises(ModelFileError, match="cannot fetch the weights"):
        load(name, tag)
    assert asked == [hub]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tinny", "tiny"),
        ("tiny-rm", "tiny-rn"),
        ("VitB/32", "ViT-B/32"),
        ("vit-b/32", "ViT-B/32"),
        ("ViT-B-32-quikgelu", "ViT-B-32-quickgelu"),
        ("ViT-B-23__laion2b_s34b_b79k", "ViT-B-32"),  # the tag's letters do not count
        ("RN51__openai", "RN50"),
        ("ViT-L/14@336", "ViT-L/14@336px"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, near: str) -> None:
    given = name.partition("__")[0]
    with pytest.raises(UnknownNameError, match=re.escape(f"unknown model '{given}'; did you mean '{near}'?")) as error:
        load(name)
    assert isinstance(error.value, LookupError)
    assert error.value.exit_code == 2


def test_a_name_like_no_other_is_offered_none() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'zzz'\. Known: ") as error:
        load("zzz")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(("name", "tag"), [("ViT-B-32", "laion2b_s34b_b79"), ("ViT-B/32__laion2b_s34b_b79", None)])
def test_an_unknown_tag_offers_the_nearest(name: str, tag: str | None) -> None:
    words = "unknown tag of ViT-B-32 'laion2b_s34b_b79'; did you mean 'laion2b_s34b_b79k'?"
    with pytest.raises(UnknownNameError, match=re.escape(words)):
        load(name, tag)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32__", "convnext_base", "RN50-quickgelu"])
def test_a_registered_name_needs_a_tag(name: str) -> None:
    with pytest.raises(UsageError, match=r"needs a tag.*--pretrained TAG") as error:
        load(name)
    assert f"{name.removesuffix('__')}__TAG" in str(error.value)


@pytest.mark.parametrize("name", ["local-dir:nowhere", "nowhere.pt", "no/where.safetensors"])
def test_a_path_that_is_not_there_is_a_usage_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such") as error:
        load(name)
    assert error.type is UsageError
    assert name.removeprefix("local-dir:") in str(error.value)


def test_a_file_is_no_folder_and_a_folder_no_file(vit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        load(f"local-dir:{vit_folder / 'open_clip_model.safetensors'}")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UsageError, match="no such file"):
        load(str(tmp_path / "folder.pt"))


def test_broken_contents_end_with_another_code_than_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"not weights")
    with pytest.raises(ModelFileError, match=re.escape(str(tmp_path / "a.pt"))) as error:
        load(str(tmp_path / "a.pt"))
    assert error.value.exit_code == 1


def test_a_model_s_own_prompts_lie_beside_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, VIT, open_clip_model(VIT).state_dict())
    monkeypatch.setattr(loading, "bundled_folder", lambda _: folder)
    names = ["tiny", f"local-dir:{folder}"]
    assert [prompts_beside(name) for name in names] == [None, None]
    (folder / "prompts.json").write_text("{}")
    assert [prompts_beside(name) for name in names] == [folder / "prompts.json"] * 2
    monkeypatch.chdir(folder)
    assert [prompts_beside(name) for name in ("ViT-B/32", "open_clip_model.safetensors", "RN50__openai")] == [None] * 3

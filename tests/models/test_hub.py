import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from d4c.errors import ModelFileError, UnsupportedModelError
from d4c.models import hub, load
from models.oracle import VIT, changed, open_clip_model, write_folder
from models.transformers_oracle import clip_folder, siglip_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Stands for huggingface.co: one repository, and whether it can be reached; what it is asked for fills `asked`."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache, self.reachable = folder, cache, True
        self.asked: list[str] = []

    def model_info(self, name: str, revision: str | None = None, **_: Any) -> SimpleNamespace:
        if not self.reachable:
            raise OSError("no network")
        if name != "some/model":
            raise errors.RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]
        if revision not in (None, "main", COMMIT):
            raise errors.RevisionNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=p.name) for p in self.folder.iterdir()])

    def hf_hub_download(self, name: str, file: str, revision: str | None = None) -> str:
        """As the library's cache lies on a disk."""
        repository = self.cache / f"models--{name.replace('/', '--')}"
        path = repository / "snapshots" / COMMIT / file
        if not path.is_file():
            if not self.reachable:
                raise errors.LocalEntryNotFoundError("not cached")
            self.asked.append(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / file, path)
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / "main").write_text(COMMIT)
        assert revision == COMMIT
        return str(path)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    (tmp_path / "cache").mkdir()
    remote = Hub(tmp_path / "remote", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(remote.cache))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: remote)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", remote.hf_hub_download)
    return remote


@pytest.mark.parametrize("save", [clip_folder, siglip_folder])
def test_a_transformers_repository_is_loaded_and_only_what_is_read_is_fetched(save: Any, remote: Hub) -> None:
    save(remote.folder)
    (remote.folder / "pytorch_model.bin").write_bytes(b"the same once more")
    expected = load(f"local-dir:{remote.folder}")
    clip = load("hf-hub:some/model")
    assert (clip.source, clip.fingerprint) == ("hf-hub:some/model", expected.fingerprint)
    assert sorted(remote.asked) == ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json",
                                    "tokenizer_config.json"]  # fmt: skip


def test_a_repository_of_open_clip_is_read_as_one_even_if_transformers_files_lie_beside(remote: Hub) -> None:
    clip_folder(remote.folder)
    write_folder(remote.folder, VIT, open_clip_model(VIT).state_dict())
    expected = load(f"local-dir:{remote.folder}").fingerprint
    assert load("hf-hub:some/model").fingerprint == expected
    assert remote.asked == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_divided_weights_are_fetched_whole(remote: Hub) -> None:
    model = clip_folder(remote.folder)
    (remote.folder / "model.safetensors").unlink()
    model.save_pretrained(remote.folder, max_shard_size="50KB")
    (remote.folder / "model.safetensors").unlink(missing_ok=True)
    assert load("hf-hub:some/model").fingerprint == load(f"local-dir:{remote.folder}").fingerprint


def test_what_is_cached_loads_without_a_network(remote: Hub) -> None:
    clip_folder(remote.folder)
    first = load("hf-hub:some/model@main").fingerprint
    remote.reachable = False
    assert load("hf-hub:some/model").fingerprint == first
    with pytest.raises(ModelFileError, match="the network cannot be reached, and none is in the cache"):
        load("hf-hub:some/other")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf-hub:some/other", "some/other: no such repository on huggingface.co"),
        ("hf-hub:some/model@v9", "some/model on huggingface.co has no revision v9"),
        ("hf-hub:some/model", "cannot fetch open_clip_config.json or config.json of some/model .*: it has none"),
    ],
)
def test_what_is_not_there_is_one_line(name: str, words: str, remote: Hub) -> None:
    remote.folder.mkdir()
    (remote.folder / "README.md").write_text("nothing else")
    with pytest.raises(ModelFileError, match=words) as error:
        load(name)
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)


def test_a_name_that_can_be_none_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="'not/a/name' is no name of a repository: need ORGANISATION/NAME"):
        load("hf-hub:not/a/name")


def test_a_refused_model_s_weights_are_not_fetched(remote: Hub) -> None:
    remote.folder.mkdir()
    (remote.folder / "config.json").write_text('{"model_type": "siglip2"}')
    (remote.folder / "model.safetensors").write_bytes(b"large")
    with pytest.raises(UnsupportedModelError, match="hf-hub:some/model: model_type = siglip2"):
        load("hf-hub:some/model")
    write_folder(remote.folder, changed(VIT, text={"embed_cls": True}), {})
    shutil.rmtree(remote.cache)
    with pytest.raises(UnsupportedModelError, match="embed_cls"):
        load("hf-hub:some/model")
    assert remote.asked == ["config.json", "open_clip_config.json"]


def test_a_download_that_breaks_off_is_one_line(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_folder(remote.folder)

    def broken(*_: Any, **__: Any) -> str:
        raise OSError("connection reset\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(ModelFileError, match=r"cannot fetch config\.json of some/model .*: connection reset$"):
        load("hf-hub:some/model")


def test_a_tokenizer_comes_with_what_it_needs(remote: Hub) -> None:
    siglip_folder(remote.folder)
    folder = hub.fetch_tokenizer("some/model")
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    shutil.rmtree(remote.cache)
    (remote.folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json or spiece\.model or vocab\.json"):
        hub.fetch_tokenizer("some/model")

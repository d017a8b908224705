"""A model's name to a canonical CLIP: one function, every spelling."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from d4c.errors import ModelFileError, UnknownNameError, UsageError
from d4c.models import from_open_clip, from_openai, from_transformers
from d4c.models.clip import Clip
from d4c.models.hub import CONFIG_FILES, fetch_files, fetch_tokenizer
from d4c.models.names import BUNDLED, OPENAI_NAMES, architecture_name, registered_names


def load(name: str, pretrained: str | None = None) -> Clip:
    """Load a CLIP by name.

    Args:
        name: a bundled model (`tiny`, `tiny-rn`), an OpenAI name (`ViT-B/32`), an open_clip name with its tag in
            `pretrained` or after two underscores (`ViT-B-32__laion2b_s34b_b79k`), `local-dir:FOLDER` or
            `hf-hub:ORGANISATION/NAME`, in open_clip's layout or Transformers' (CLIP, SigLIP), or a path to an OpenAI
            `.pt` or `.safetensors` file.
        pretrained: open_clip's tag.

    Raises:
        UnknownNameError: no such model or tag.
        UsageError: a path that is not there, or a name without a tag.
        UnsupportedModelError: an architecture d4c does not cover.
        ModelFileError: weights that cannot be fetched or read.
    """
    if name in BUNDLED:
        return from_open_clip.load_folder(bundled_folder(name), name)
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not folder.is_dir():
            raise UsageError(f"no such folder: {folder}")
        return _load_folder(folder, name)
    if name.startswith("hf-hub:"):
        return _load_hub(name)
    if name.endswith((".pt", ".safetensors")):
        if not Path(name).is_file():
            raise UsageError(f"no such file: {name}")
        return from_openai.load_file(Path(name))
    return _load_registered(name, pretrained)


def bundled_folder(name: str) -> Path:
    """Where a bundled model's files lie.

    Raises:
        ModelFileError: this installation lacks them.
    """
    folder = Path(str(resources.files("d4c.models") / "bundled" / name))
    if not folder.is_dir():
        raise ModelFileError(f"this installation of d4c does not carry the bundled model {name}")
    return folder


def prompts_beside(name: str) -> Path | None:
    """The prompt bank that lies beside a bundled or local model's weights, or None."""
    if name in BUNDLED:
        path = bundled_folder(name) / "prompts.json"
    elif name.startswith("local-dir:"):
        path = Path(name.removeprefix("local-dir:")) / "prompts.json"
    else:
        return None
    return path if path.is_file() else None


def _load_folder(folder: Path, source: str) -> Clip:
    if (folder / "open_clip_config.json").is_file() or not (folder / "config.json").is_file():
        return from_open_clip.load_folder(folder, source)
    return from_transformers.load_folder(folder, source)


def _load_hub(name: str) -> Clip:
    """Only the files that are read are fetched: many repositories hold the same weights in several forms."""
    repository = name.removeprefix("hf-hub:")
    folder = fetch_files(repository, CONFIG_FILES)
    pinned = f"{repository.partition('@')[0]}@{folder.name}"
    if (folder / "open_clip_config.json").is_file():
        from_open_clip.read_config(folder, name)  # may refuse
        fetch_files(pinned, from_open_clip.WEIGHT_FILES)
        return from_open_clip.load_folder(folder, name, fetch_tokenizer)
    from_transformers.read_config(folder, name)  # may refuse
    fetch_files(pinned, from_transformers.WEIGHT_FILES, from_transformers.OTHER_FILES)
    for shard in from_transformers.shard_names(folder):
        fetch_files(pinned, [shard])
    return from_transformers.load_folder(folder, name)


def _load_registered(name: str, pretrained: str | None) -> Clip:
    given, _, tag = name.partition("__")
    architecture = architecture_name(given)
    pretrained = pretrained or tag or ("openai" if name in OPENAI_NAMES else "")
    if architecture not in registered_names():
        raise UnknownNameError("model", given, {*BUNDLED, *OPENAI_NAMES, *registered_names()})
    if not pretrained:
        raise UsageError(f"{name} needs a tag: d4c … {name} --pretrained TAG, or {architecture}__TAG")
    return from_open_clip.load_registered(architecture, pretrained)

"""Files of a Hugging Face repository, downloaded once and then read from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d4c.errors import ModelFileError
from d4c.inputs.tokenizer_files import FILES as TOKENIZER_FILES

CONFIG_FILES = ("open_clip_config.json", "config.json")
SECONDS = 20.0  # for an answer of the hub


def fetch_files(repository: str, needed: Sequence[str], wanted: Sequence[str] = ()) -> Path:
    """Fetch the first of `needed` that the repository has, and all of `wanted` that it has, of one commit.

    Without a network, what lies in the cache is taken.

    Args:
        repository: ORGANISATION/NAME, perhaps with @REVISION.

    Returns:
        the folder in the cache where they lie, which is called like the commit.

    Raises:
        ModelFileError: none of the needed ones can be had.
    """
    name, _, revision = repository.partition("@")
    listed = _listed(name, revision or None)
    files, commit = listed or _cached(name, revision or None, [*needed, *wanted])
    first = next((file for file in needed if file in files), None)
    if first is None:
        reason = "it has none" if listed else "the network cannot be reached, and none is in the cache"
        raise ModelFileError(f"cannot fetch {' or '.join(needed)} of {repository} from huggingface.co: {reason}")
    for file in wanted:
        if file in files:
            _download(name, file, commit)
    return _download(name, first, commit).parent


def fetch_tokenizer(repository: str) -> Path:
    """The folder with a repository's tokenizer.

    Raises:
        ModelFileError: it has none, or it cannot be fetched.
    """
    return fetch_files(repository, TOKENIZER_FILES, ("tokenizer_config.json", "merges.txt"))


def _listed(name: str, revision: str | None) -> tuple[set[str], str] | None:
    """What the repository holds and at which commit; None where the hub does not answer."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=SECONDS)
    except errors.RevisionNotFoundError as error:
        raise ModelFileError(f"{name} on huggingface.co has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelFileError(f"{name}: no such repository on huggingface.co, or it asks for a login") from error
    except errors.HFValidationError as error:
        raise ModelFileError(f"'{name}' is no name of a repository: need ORGANISATION/NAME") from error
    except Exception:  # every version's HTTP client has its own
        return None
    return {sibling.rfilename for sibling in info.siblings or ()}, info.sha or "main"


def _cached(name: str, revision: str | None, asked: Sequence[str]) -> tuple[set[str], str]:
    import huggingface_hub

    paths = {file: huggingface_hub.try_to_load_from_cache(name, file, revision=revision) for file in asked}
    found = {file: Path(path) for file, path in paths.items() if isinstance(path, str)}
    return set(found), next((path.parent.name for path in found.values()), "main")


def _download(name: str, file: str, commit: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(name, file, revision=commit))
    except Exception as error:  # every version's HTTP client has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"cannot fetch {file} of {name} from huggingface.co: {reason}") from error

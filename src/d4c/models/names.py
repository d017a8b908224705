"""Which models can be named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from d4c.models.torchvision_schemas import declare_torchvision_schemas

BUNDLED = ("tiny", "tiny-rn")
OPENAI_NAMES = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")


def registered_names() -> list[str]:
    """open_clip's architectures, read from its configuration files without importing it."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        return []
    return sorted(path.stem for path in (Path(found.origin).parent / "model_configs").glob("*.json"))


def architecture_name(name: str) -> str:
    """open_clip's spelling of an architecture: `ViT-L-14-336` for OpenAI's `ViT-L/14@336px`."""
    return name.replace("/", "-").replace("@336px", "-336")


def registered_tags(architecture: str) -> list[str]:
    """The tags under which open_clip offers weights for an architecture."""
    declare_torchvision_schemas()
    from open_clip.pretrained import list_pretrained_tags_by_model

    tags: list[str] = list_pretrained_tags_by_model(architecture)
    return tags

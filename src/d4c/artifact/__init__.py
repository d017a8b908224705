"""The artifact folder and the exported one: their formats, without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from d4c.artifact.exported import Exported, ExportedTower, check_files, read_exported

if TYPE_CHECKING:
    from d4c.artifact.folder import FORMAT_VERSION, Artifact, read_artifact, read_manifest, write_artifact
    from d4c.artifact.work import Work, user_cache

# These need safetensors, which the runtime does without.
_HOMES = {
    "FORMAT_VERSION": "d4c.artifact.folder",
    "Artifact": "d4c.artifact.folder",
    "read_artifact": "d4c.artifact.folder",
    "read_manifest": "d4c.artifact.folder",
    "write_artifact": "d4c.artifact.folder",
    "Work": "d4c.artifact.work",
    "user_cache": "d4c.artifact.work",
}

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "Exported",
    "ExportedTower",
    "Work",
    "check_files",
    "read_artifact",
    "read_exported",
    "read_manifest",
    "user_cache",
    "write_artifact",
]


def __getattr__(name: str) -> Any:
    """Import what needs safetensors only when it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'd4c.artifact' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""The artifact folder: its format, without torch."""

from d4c.artifact.exported import Exported, ExportedTower, check_files, read_exported
from d4c.artifact.folder import FORMAT_VERSION, Artifact, read_artifact, read_manifest, write_artifact
from d4c.artifact.work import Work, user_cache

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

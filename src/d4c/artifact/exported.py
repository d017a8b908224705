"""d4c.json: what an exported folder says of itself, and how it is checked.

The folder holds d4c.json, which gives the SHA-256 of every other file; the graphs of both towers, *.onnx or *.xml with
*.bin, where the layout wants them; preprocessor_config.json, tokenizer.json, tokenizer_config.json, README.md; and what
else the layout's consumer reads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from d4c.errors import ExportError

EXPORTED, EXPORTED_VERSION = "d4c.json", 1
FLOAT_RECIPE = "float"
Storage = Literal["float", "int8", "int4"]


@dataclass(frozen=True, slots=True)
class ExportedTower:
    """One graph.

    Args:
        files: path in the folder by how weights lie in it; the first is the default, all compute the same.
        input, output: names in the graph.
    """

    files: Mapping[str, str]
    input: str
    output: str

    @property
    def file(self) -> str:
        """The default graph."""
        return next(iter(self.files.values()))


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported folder.

    Args:
        layout: who it was made for.
        runtime: which library runs its graphs; for open_clip the one file of both towers holds weights, and the names
            are those of its forward pass.
        image: [batch, 3, size, size] float32 in normalised space -> [batch, embedding].
        text: ids [batch, token] -> [batch, embedding].
        id_type: of ids; fixed_length: whether texts must be padded to the context; else to the longest of a batch.
        normalized: whether embeddings leave the graph with length 1.
        logit_scale: factor on cosines; logit_bias: SigLIP's, or None.
        template: for `classify`, with {c} where the label goes.
        source, fingerprint: the float model; recipe: how it was quantized, or "float".
        content_sha256, artifact: the artifact it was translated from, and where that lay; None for a float model.
        sha256: of every other file, by path in the folder.
    """

    layout: str
    runtime: Literal["onnxruntime", "openvino", "open_clip"]
    image: ExportedTower
    text: ExportedTower
    id_type: Literal["int32", "int64"]
    fixed_length: bool
    normalized: bool
    embed_dim: int
    logit_scale: float
    logit_bias: float | None
    template: str
    source: str
    fingerprint: str
    recipe: str
    content_sha256: str | None
    artifact: str | None
    sha256: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The content of d4c.json."""
        return {"format_version": EXPORTED_VERSION, **dataclasses.asdict(self)}


def read_exported(folder: Path) -> Exported:
    """Read d4c.json; the other files are not verified.

    Raises:
        ExportError: it is missing or broken, or of a version this one cannot read.
    """
    try:
        data = json.loads((folder / EXPORTED).read_text(encoding="utf-8"))
        version = data.pop("format_version")
        if version != EXPORTED_VERSION:
            raise ExportError(f"{folder}: format version {version}; this d4c reads version {EXPORTED_VERSION}")
        image, text = (ExportedTower(**data.pop(kind)) for kind in ("image", "text"))
        exported = Exported(image=image, text=text, **data)
        files = [*exported.image.files.values(), *exported.text.files.values()]
        if not (exported.image.files and exported.text.files and all(isinstance(name, str) for name in files)):
            raise TypeError("a tower's files are no paths")
        missing = sorted(set(files) - set(dict(exported.sha256)))
    except ExportError:
        raise
    except FileNotFoundError as error:
        raise ExportError(f"{folder}: not an exported folder, there is no {EXPORTED}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{folder}: {EXPORTED} cannot be read: {error}") from error
    if missing:
        raise ExportError(f"{folder}: {EXPORTED} does not tell the SHA-256 of {', '.join(missing)}")
    return exported


def check_files(folder: Path, exported: Exported) -> None:
    """Compare every file with its SHA-256.

    Raises:
        ExportError: one is missing or damaged, or lies outside the folder.
    """
    for name, expected in exported.sha256.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"{folder}: {EXPORTED} names {name}, which is not in the folder")
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ExportError(f"{folder}: {name} is missing") from error
        if found != expected:
            raise ExportError(f"{folder}: {name} is damaged, its SHA-256 differs from {EXPORTED}'s")

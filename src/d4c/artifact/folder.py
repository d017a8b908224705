"""The artifact folder: what is in it, how it is checked, how it appears all at once.

    config.json               architecture and quantization_config
    model.safetensors         integers, scales, zero points, float rest
    preprocessor_config.json  tokenizer.json  tokenizer_config.json  recipe.toml
    manifest.json             where it came from, what each stage took, SHA-256 of every file
    contact_sheet.png  report.json  README.md

Tensors of model.safetensors, for a layer L and a tensor site T:

    L.weight              int8 codes, or uint8 with two codes a byte where its format says so (`packed`)
    L.weight_scale        float32 [out];  L.weight_zero_point  float32 [out] where the grid is not symmetric
    L.bias                int32 in units of input scale x weight scale where deployable, else float32
    L.input_scale, L.input_zero_point   float32, where the layer's input is quantized for it alone
    T.scale, T.zero_point float32
    everything else       float32 by canonical name
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from d4c.artifact.architecture import ClipConfig
from d4c.errors import ArtifactError
from d4c.inputs import Preprocess, Tokenizer

FORMAT_VERSION = 1
WEIGHTS_METADATA = {"d4c.format_version": str(FORMAT_VERSION)}  # in the header of model.safetensors
WEIGHTS, CONFIG, RECIPE, MANIFEST = "model.safetensors", "config.json", "recipe.toml", "manifest.json"
# What makes two artifacts the same; the rest tells how they were made and what they cost.
CONTENT_FILES = (
    WEIGHTS, CONFIG, RECIPE, "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
MANIFEST_KEYS = {
    "source", "fingerprint", "parameters", "seed", "threads", "prompts", "versions", "stages", "content_sha256",
}  # fmt: skip


@dataclass(frozen=True)
class Artifact:
    """An artifact, as it was read and verified, or as it is to be written.

    Args:
        arrays: tensors of model.safetensors, as the module's page names them.
        config: config.json; recipe: recipe.toml as text; manifest: manifest.json.
    """

    folder: Path
    arrays: Mapping[str, NDArray[Any]]
    config: Mapping[str, Any]
    recipe: str
    manifest: Mapping[str, Any]
    preprocess: Preprocess
    tokenizer: Tokenizer

    @property
    def architecture(self) -> ClipConfig:
        """The shape of the model."""
        try:
            return ClipConfig.from_dict(self.config["architecture"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{self.folder}: config.json describes no model this version knows: {error}") from error

    @property
    def quantization(self) -> Mapping[str, Any]:
        """`quantization_config`: formats by site."""
        quantization: Mapping[str, Any] = self.config["quantization_config"]
        return quantization

    def coverage(self) -> dict[str, Any]:
        """How many weights have how many bits.

        Returns:
            `parameters`; `by_bits`: parameters with so many bits, "32" for the float rest; `block_share_at_4_bits`: of
            the weights in residual blocks and bottlenecks, text MLPs of 8 bits left out, the share with at most 4 bits.
        """
        by_bits: dict[str, int] = {}
        blocks = low = 0
        for layer, about in self.quantization["weights"].items():
            count = int(np.prod(about["shape"]))
            by_bits[str(about["bits"])] = by_bits.get(str(about["bits"]), 0) + count
            text_mlp = layer.startswith("text.") and ".mlp." in layer and about["bits"] == 8
            if (".blocks." in layer or layer.startswith("image.layer")) and not text_mlp:
                blocks += count
                low += count if about["bits"] <= 4 else 0
        num_parameters = self.manifest["parameters"]
        by_bits["32"] = num_parameters - sum(by_bits.values())
        return {
            "parameters": num_parameters,
            "by_bits": by_bits,
            "block_share_at_4_bits": low / blocks if blocks else 0.0,
        }


def write_artifact(artifact: Artifact, staging: Path, manifest: Mapping[str, Any], extra: Mapping[str, bytes]) -> None:
    """Write all files to `staging`, complete the manifest, and rename the folder to `artifact.folder`.

    Args:
        artifact: its manifest lacks `files` and `content_sha256`, which are computed here.
        staging: on the same file system, replaced if it exists.
        manifest: further entries of the manifest; extra: further files by name.
    """
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    (staging / WEIGHTS).write_bytes(save(dict(artifact.arrays), WEIGHTS_METADATA))
    (staging / CONFIG).write_text(json.dumps(artifact.config, indent=1) + "\n", encoding="utf-8")
    (staging / RECIPE).write_text(artifact.recipe, encoding="utf-8")
    artifact.preprocess.save(staging)
    artifact.tokenizer.save(staging)
    for name, data in extra.items():
        (staging / name).write_bytes(data)
    files = {path.name: file_sha256(path) for path in sorted(staging.iterdir())}
    complete = {**artifact.manifest, **manifest, "files": files, "content_sha256": content_sha256(files)}
    (staging / MANIFEST).write_text(json.dumps(complete, indent=1) + "\n", encoding="utf-8")
    staging.rename(artifact.folder)


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact and verify it.

    Raises:
        ArtifactError: a file is missing, does not match its checksum, or has a format this version cannot read.
    """
    manifest = read_manifest(folder)
    contents = {}
    for name, expected in manifest["files"].items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ArtifactError(f"{folder}: {name} is missing") from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise ArtifactError(f"{folder}: {name} is damaged, its SHA-256 differs from the manifest's")
        contents[name] = data
    try:
        arrays = load(contents[WEIGHTS])
        config = json.loads(contents[CONFIG])
        recipe = contents[RECIPE].decode()
    except (KeyError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: incomplete: {error}") from error
    return Artifact(
        folder, arrays, config, recipe, manifest, Preprocess.from_folder(folder), Tokenizer.from_folder(folder)
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json and check the format's version; files are not verified.

    Raises:
        ArtifactError: it is missing or broken, or of a version this one cannot read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format_version"]
        files = dict(manifest["files"])
        missing = sorted(set(CONTENT_FILES) - set(files))
        lost = sorted(MANIFEST_KEYS - set(manifest))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder}: not an artifact, there is no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder}: {MANIFEST} cannot be read: {error}") from error
    if version != FORMAT_VERSION:
        raise ArtifactError(f"{folder}: format version {version}; this d4c reads version {FORMAT_VERSION}")
    if missing:
        raise ArtifactError(f"{folder}: {MANIFEST} does not tell the SHA-256 of {missing[0]}")
    if lost:
        raise ArtifactError(f"{folder}: {MANIFEST} is damaged, it lacks {lost[0]}")
    if manifest["content_sha256"] != content_sha256(files):
        raise ArtifactError(f"{folder}: {MANIFEST} is damaged, its content_sha256 is not that of its files")
    return manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(files: Mapping[str, str]) -> str:
    """SHA-256 over the sorted (name, SHA-256) of the files that make two artifacts the same."""
    lines = [f"{name} {files[name]}\n" for name in sorted(CONTENT_FILES)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()

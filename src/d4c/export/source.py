"""What a graph is built from: an artifact, or a float model in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.artifact import Artifact
from d4c.artifact.architecture import ClipConfig
from d4c.artifact.exported import FLOAT_RECIPE
from d4c.artifact.packing import unpack_nibbles
from d4c.errors import RecipeError
from d4c.inputs import Preprocess, Tokenizer


@dataclass(frozen=True)
class Source:
    """A CLIP as arrays by canonical name.

    Args:
        arrays: as in model.safetensors, but 4-bit codes unpacked to int8 in the weight's shape.
        weights: bits of every quantized layer; tensors: bits of every quantized tensor site.
        name, fingerprint: of the float model; recipe: "float" where nothing is quantized.
        content_sha256, folder: of the artifact, or None.
    """

    config: ClipConfig
    arrays: Mapping[str, NDArray[Any]]
    weights: Mapping[str, int]
    tensors: Mapping[str, int]
    preprocess: Preprocess
    tokenizer: Tokenizer
    name: str
    fingerprint: str
    recipe: str = FLOAT_RECIPE
    content_sha256: str | None = None
    folder: str | None = None

    @property
    def logit_scale(self) -> float:
        """Factor on cosines."""
        return float(np.exp(self.arrays["logit_scale"].astype(np.float64)))

    @property
    def logit_bias(self) -> float | None:
        """SigLIP's bias on logits."""
        return float(self.arrays["logit_bias"]) if "logit_bias" in self.arrays else None

    @property
    def has_int4(self) -> bool:
        """Whether any weight has four bits."""
        return any(bits <= 4 for bits in self.weights.values())


def source_of(artifact: Artifact) -> Source:
    """See an artifact as what a graph is built from.

    Raises:
        RecipeError: no integer kernel computes what its recipe simulates.
    """
    quantization = artifact.quantization
    if not quantization["deployable"]:
        raise RecipeError(
            f"{artifact.folder}: recipe {quantization['recipe']} runs as {quantization['runs_as']}, not in integers; "
            "w8a8, w6a6 and w4a8 can be exported"
            + (" (for weights alone: --layout open_clip)" if quantization["runs_as"] == "storage" else "")
        )
    arrays = dict(artifact.arrays)
    for layer, about in quantization["weights"].items():
        if about["packed"]:
            arrays[f"{layer}.weight"] = unpack_nibbles(arrays[f"{layer}.weight"], tuple(about["shape"]))
    return described(
        artifact,
        arrays,
        {layer: about["bits"] for layer, about in quantization["weights"].items()},
        {site: about["bits"] for site, about in quantization["tensors"].items()},
    )


def described(
    artifact: Artifact, arrays: Mapping[str, NDArray[Any]], weights: Mapping[str, int], tensors: Mapping[str, int]
) -> Source:
    """Arrays with all else that an artifact says of itself; arguments as of `Source`."""
    return Source(
        artifact.architecture,
        arrays,
        weights,
        tensors,
        artifact.preprocess,
        artifact.tokenizer,
        artifact.manifest["source"],
        artifact.manifest["fingerprint"],
        artifact.quantization["recipe"],
        artifact.manifest["content_sha256"],
        str(artifact.folder),
    )

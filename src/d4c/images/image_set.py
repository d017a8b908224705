"""Images in a model's input space, with where they came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from d4c.errors import ImageFileError


@dataclass(frozen=True)
class ImageSet:
    """Calibration images.

    Args:
        pixels: float32 [image, 3, height, width] in normalised space.
        prompt_index: int64 [image], the prompt each image was drawn towards, -1 where none was.
        boxes: int64 [image, 4], top, left, height, width of the foreground in pixels, -1 where there is none.
        prompts: the texts that `prompt_index` counts in.
        source: how they came to be ("d4c", "noise", "folder …").
        seed: of the generator; fingerprint: of the model that made them, or "" where none did.
        settings: what else determined them, as JSON.
    """

    pixels: Tensor
    prompt_index: Tensor
    boxes: Tensor
    prompts: tuple[str, ...]
    source: str
    seed: int = 0
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.pixels)
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3 or self.pixels.dtype != torch.float32:
            raise ValueError(
                f"need float32 pixels [image, 3, height, width], got {self.pixels.dtype} {[*self.pixels.shape]}"
            )
        if self.prompt_index.shape != (n,) or self.boxes.shape != (n, 4):
            raise ValueError(f"need prompt_index [{n}] and boxes [{n}, 4]")
        if not bool(self.pixels.isfinite().all()):
            raise ImageFileError(f"images from {self.source} hold values that are not finite")

    @classmethod
    def unlabelled(cls, pixels: Tensor, source: str, seed: int = 0, **settings: Any) -> ImageSet:
        """Images without prompts and boxes."""
        none = torch.full((len(pixels),), -1)
        return cls(pixels, none, none[:, None].expand(-1, 4).contiguous(), (), source, seed, settings=settings)

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: slice | Tensor) -> ImageSet:
        """Some of the images as a set."""
        pixels, index, boxes = self.pixels[rows], self.prompt_index[rows], self.boxes[rows]
        return dataclasses.replace(self, pixels=pixels, prompt_index=index, boxes=boxes)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors = {"pixels": self.pixels.cpu(), "prompt_index": self.prompt_index.cpu(), "boxes": self.boxes.cpu()}
        about = {
            "prompts": list(self.prompts),
            "source": self.source,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
        }
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"d4c.images": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> ImageSet:
        """Read what `save` wrote.

        Raises:
            ImageFileError: the file is missing, broken, or not an image set.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["d4c.images"])
                tensors = {name: file.get_tensor(name) for name in ("pixels", "prompt_index", "boxes")}
            return cls(**tensors, **{**about, "prompts": tuple(about["prompts"])})
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ImageFileError(f"{path}: not an image set: {error}") from error

"""Pictures to model input: one preprocessing for the torch models and for the runtime."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from d4c.errors import ModelFileError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MOST_PIXELS = 2**26  # of a scaled picture whose middle is cut out


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Resize, crop, RGB, [0, 1], normalise, exactly as open_clip's evaluation transform does.

    Args:
        size: side of the square that comes out, pixels.
        mean, std: per channel, in [0, 1] units; a list, as JSON has it, becomes a tuple.
        resize_mode: "shortest" scales the short side and crops the middle, "squash" ignores the aspect ratio,
            "longest" scales the long side and pads with black.
    """

    size: int
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"

    def __post_init__(self) -> None:
        if self.interpolation not in _RESAMPLING or self.resize_mode not in ("shortest", "squash", "longest"):
            raise ModelFileError(f"unknown preprocessing '{self.interpolation}', '{self.resize_mode}'")
        for name, least in (("mean", -np.inf), ("std", 0)):
            given = getattr(self, name)
            values = tuple(given) if isinstance(given, list | tuple) else ()
            if len(values) != 3 or not all(isinstance(v, int | float) and least < v < np.inf for v in values):
                raise ModelFileError(f"unknown preprocessing: {name} = {given}")
            object.__setattr__(self, name, values)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """One picture -> [3, size, size] float32 in normalised space.

        Raises:
            ValueError: it has no pixels, or is so long and thin that scaling it would fill the memory.
        """
        pixels = np.asarray(self._fit(image).convert("RGB"), np.float32) / np.float32(255)  # [height, width, channel]
        return self.normalize(pixels.transpose(2, 0, 1))

    def normalize(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """[.., 3, height, width] in [0, 1] -> normalised space."""
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        return np.ascontiguousarray((pixels - mean) / std, np.float32)

    def denormalize(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The inverse of `normalize`, not clipped."""
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        return pixels * std + mean

    def valid_range(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Black and white in normalised space, each [3, 1, 1]: no picture lies outside."""
        flat = np.zeros((3, 1, 1), np.float32)
        return self.normalize(flat), self.normalize(flat + 1)

    def _fit(self, image: Image.Image) -> Image.Image:
        resampling = _RESAMPLING[self.interpolation]
        width, height = image.size
        if min(width, height) < 1:
            raise ValueError("it has no pixels")
        if self.resize_mode == "squash":
            return image.resize((self.size, self.size), resampling)
        if self.resize_mode == "longest":
            ratio = max(width, height) / self.size  # multiplying by its inverse rounds some halves the other way
            image = image.resize((round(width / ratio), round(height / ratio)), resampling)
            left, top = (self.size - image.width) // 2, (self.size - image.height) // 2
            border = (left, top, self.size - image.width - left, self.size - image.height - top)
            return ImageOps.expand(image, border)  # keeps a palette
        if width <= height:
            scaled = (self.size, int(self.size * height / width))
        else:
            scaled = (int(self.size * width / height), self.size)
        if scaled[0] * scaled[1] > MOST_PIXELS:
            raise ValueError(f"{width} x {height} pixels are too long and thin")
        image = image.resize(scaled, resampling)
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json`, which Hugging Face's CLIPImageProcessor reads too."""
        crop = self.resize_mode == "shortest"
        config = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.size} if crop else {"height": self.size, "width": self.size},
            "resample": int(_RESAMPLING[self.interpolation]),
            "do_center_crop": crop,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
            "d4c": dataclasses.asdict(self),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_folder(cls, folder: Path) -> Preprocess:
        """Read what `save` wrote.

        Raises:
            ModelFileError: the file is missing or is not what its name says.
        """
        try:
            data = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))["d4c"]
            return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(f"{folder}: cannot read preprocessor_config.json: {error}") from error

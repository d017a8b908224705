"""Files and pictures to model input: what is read as it stands, what is scaled to eight bits, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d4c.errors import ImageFileError
from d4c.inputs.preprocess import Preprocess

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
WHITE = 65535  # of 16 bits


def read_pixels(picture: Image.Image | str | Path, preprocess: Preprocess) -> NDArray[np.float32]:
    """Read a picture as the model sees it; of an animation the first frame.

    As in open_clip, colours are the file's: no colour profile is applied, nor the orientation that a camera noted, and
    alpha is dropped: what is wholly transparent turns black, or in a palette shows the colour that lies there.

    Args:
        picture: an opened one, or a path.

    Returns:
        [3, size, size] in normalised space.

    Raises:
        ImageFileError: not a picture, a broken or monstrous one, or one whose white is not known.
    """
    try:
        if isinstance(picture, Image.Image):
            return preprocess(eight_bits(picture))
        with Image.open(picture) as image:
            return preprocess(eight_bits(image))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # Syntax: broken PNGs
        name = "a picture in memory" if isinstance(picture, Image.Image) else picture
        raise ImageFileError(f"{name}: not a picture that can be read: {error}") from error


def eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 bits scaled to 8, where Pillow's own conversion would cut it off at 255; others as they are.

    Raises:
        ValueError: floats, or whole numbers outside 16 bits: nothing says which value is white.
    """
    if isinstance(image.info.get("transparency"), bytes):  # of which Pillow would warn
        image = image.copy()
        del image.info["transparency"]
    if image.mode == "F":
        raise ValueError("its values are floats, and nothing says which is white; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)  # [height, width]
    if values.size and (values.min() < 0 or values.max() > WHITE):
        raise ValueError("its values do not fit into 16 bits, and nothing says which is white; save it with 8 or 16")
    return Image.fromarray(np.rint(values * (255 / WHITE)).astype(np.uint8))

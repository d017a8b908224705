"""One picture that shows a whole set."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from d4c.images.image_set import ImageSet
from d4c.inputs import Preprocess

GAP, CAPTION, MIN_TILE = 6, 16, 96


def contact_sheet(images: ImageSet, preprocess: Preprocess, columns: int = 8, limit: int = 64) -> Image.Image:
    """Draw up to `limit` images in a grid, clipped to what a screen can show, each over its prompt.

    Args:
        images: small ones are enlarged by a whole factor, without smoothing.

    Returns:
        an RGB picture.
    """
    shown = preprocess.denormalize(images.pixels[:limit].cpu().numpy())  # [image, 3, height, width]
    pixels = (shown.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    tile = images.pixels.shape[-1]
    tile *= -(-MIN_TILE // tile)
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    caption = CAPTION if images.prompts else 0
    size = (columns * (tile + GAP) + GAP, rows * (tile + caption + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, array in enumerate(pixels):
        x, y = GAP + i % columns * (tile + GAP), GAP + i // columns * (tile + caption + GAP)
        sheet.paste(Image.fromarray(array).resize((tile, tile), Image.Resampling.NEAREST), (x, y))
        if caption and images.prompt_index[i] >= 0:
            text = images.prompts[int(images.prompt_index[i])]
            draw.text((x, y + tile + 2), _shorten(text, tile, font), fill="black", font=font)
    return sheet


def _shorten(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    text = text.removeprefix("a photo of a ").removeprefix("a photo of ").rstrip(".")
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…"
    return text

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from d4c.errors import ImageFileError
from d4c.inputs import Preprocess, read_pixels

PREPROCESS = Preprocess(16)
RAMP = np.linspace(0, 255, 24 * 40).astype(np.uint8).reshape(24, 40)
SHADES = RAMP.astype(np.uint16) * 257  # the same picture in 16 bits: 255 * 257 = 65535


def png_of_16_bits(values: NDArray[np.uint16], colour: int) -> bytes:
    """A PNG with 16 bits a channel; colour 0 is grey, 2 RGB, 4 grey and alpha."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    return buffer.getvalue()


SIXTEEN_BITS = {
    "grey.png": png_of_16_bits(SHADES, 0),
    "rgb.png": png_of_16_bits(np.stack([SHADES] * 3, axis=-1), 2),
    "alpha.png": png_of_16_bits(np.stack([SHADES, np.full_like(SHADES, 65535)], axis=-1), 4),
    "little.tif": tiff(Image.fromarray(SHADES)),
    "big.tif": tiff(Image.frombytes("I;16B", (40, 24), SHADES.astype(">u2").tobytes())),
    "grey.pgm": b"P5 40 24 65535\n" + SHADES.astype(">u2").tobytes(),
    "few.pgm": b"P5 40 24 255\n" + RAMP.tobytes(),
}


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_a_picture_of_16_bits_is_its_twin_of_8(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(SIXTEEN_BITS[name])
    found = read_pixels(tmp_path / name, PREPROCESS)
    assert np.array_equal(found, PREPROCESS(Image.fromarray(RAMP)))
    with Image.open(tmp_path / name) as image:
        assert np.array_equal(read_pixels(image, PREPROCESS), found)


def test_16_bits_round_to_the_nearest_of_8() -> None:
    # 128 is 0.498 steps of 257, 129 is 0.502; 65406 = 254.498 * 257, 65407 = 254.502 * 257
    image = Image.fromarray(np.asarray([[0, 128], [129, 65406]], np.uint16))
    plain = Preprocess(2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(255 * read_pixels(image, plain)[0], [[0, 0], [1, 254]], atol=1e-4)


@pytest.mark.parametrize("values", [np.float32(0.5), np.int32(65536), np.int32(-1)])
def test_a_picture_whose_white_nobody_knows_is_refused(values: np.generic, tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 5), values)).save(tmp_path / "a.tif")
    with pytest.raises(ImageFileError, match=r"a\.tif.* which is white") as error:
        read_pixels(tmp_path / "a.tif", PREPROCESS)
    assert "\n" not in str(error.value)


def test_cmyk_and_one_pixel_are_as_pillow_converts_them(tmp_path: Path) -> None:
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    Image.new("RGB", (1, 1), (10, 200, 30)).save(tmp_path / "b.png")
    red, dot = (PREPROCESS.denormalize(read_pixels(tmp_path / name, PREPROCESS)) * 255 for name in ("a.jpg", "b.png"))
    np.testing.assert_allclose(red.mean(axis=(1, 2)), [255, 0, 0], atol=3)
    np.testing.assert_allclose(dot.reshape(3, -1).T, [[10, 200, 30]] * 256, atol=1e-3)


def test_alpha_is_dropped_and_nothing_is_laid_under_it(tmp_path: Path) -> None:
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(tmp_path / "p.png", transparency=bytes([255, 0]))  # a warning of Pillow's would fail the test
    Image.new("RGBA", (20, 20), (10, 200, 30, 128)).save(tmp_path / "half.png")
    Image.new("RGBA", (20, 20), (10, 200, 30, 0)).save(tmp_path / "none.png")
    opaque, black = (PREPROCESS(Image.new("RGB", (20, 20), colour)) for colour in ((10, 200, 30), "black"))
    one = 1 / 255 / 0.26 + 1e-6  # Pillow scales alpha times colour, and divides again: one step of 255
    for name, expected in (("p.png", opaque), ("half.png", opaque), ("none.png", black)):
        np.testing.assert_allclose(read_pixels(tmp_path / name, PREPROCESS), expected, rtol=0, atol=one)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        first.save(
            tmp_path / name, save_all=True, append_images=[second], **({"lossless": True} if "w" in name else {})
        )
        np.testing.assert_allclose(read_pixels(tmp_path / name, PREPROCESS), PREPROCESS(first), atol=1e-6)


def test_the_orientation_that_a_camera_noted_is_not_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.stack([RAMP] * 3, axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter before showing
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_pixels(tmp_path / "a.png", PREPROCESS), PREPROCESS(image))


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (3, 30000)])
def test_a_line_that_would_fill_the_memory_is_refused(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("L", size).save(tmp_path / "line.png")
    with pytest.raises(ImageFileError, match=r"line\.png: .* too long and thin"):
        read_pixels(tmp_path / "line.png", Preprocess(224))
    assert read_pixels(tmp_path / "line.png", Preprocess(224, resize_mode="squash")).shape == (3, 224, 224)


def test_a_long_picture_that_fits_is_cut_in_its_middle() -> None:
    image = Image.new("RGB", (2, 2000), "red")
    image.paste("blue", (0, 980, 2, 1020))
    pixels = read_pixels(image, Preprocess(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), [0, 0, 1], atol=1e-3)


def test_a_picture_in_memory_that_cannot_be_converted_is_one_error() -> None:
    with pytest.raises(ImageFileError, match="a picture in memory: not a picture that can be read: conversion from La"):
        read_pixels(Image.new("La", (20, 20)), PREPROCESS)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_16_bits_in_memory_may_lie_in_any_order(mode: str) -> None:
    image = Image.new(mode, (20, 20), 30 * 257)
    assert np.array_equal(read_pixels(image, PREPROCESS), PREPROCESS(Image.new("L", (20, 20), 30)))


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ImageFileError, match="has no pixels"):
        read_pixels(Image.new("RGB", (0, 5)), PREPROCESS)


def test_the_given_picture_is_not_changed() -> None:
    image = Image.new("P", (8, 8))
    image.info["transparency"] = b"\0\1"
    read_pixels(image, PREPROCESS)
    assert image.info["transparency"] == b"\0\1"

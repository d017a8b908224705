import json
from pathlib import Path

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image

from d4c.errors import ModelFileError
from d4c.inputs import Preprocess

SIZES = ((64, 48), (48, 64), (32, 32), (333, 200), (37, 91), (20, 20), (300, 41), (7, 90))  # width, height
RESIZE_MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")


def photograph(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth structure, noise, and some burnt-out parts."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 4), np.uint8), "RGBA")
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    noisy = (smooth * 1.4 - 40 + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(noisy, "RGBA")
    if mode == "P":
        return image.convert("RGB").quantize(32)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pixels_are_open_clips(interpolation: str, resize_mode: str, mode: str) -> None:
    for size in (32, 45):
        ours = Preprocess(size, interpolation=interpolation, resize_mode=resize_mode)  # type: ignore[arg-type]
        theirs = image_transform(size, is_train=False, interpolation=interpolation, resize_mode=resize_mode)
        for seed, (width, height) in enumerate(SIZES):
            image = photograph(width, height, mode, seed)
            np.testing.assert_allclose(ours(image), theirs(image).numpy(), rtol=0, atol=1e-3, err_msg=f"{image.size}")


# Sides whose scaled length is exactly a half: 105 * 224 / 192 = 122.5.
@pytest.mark.parametrize("side", [(192, 105), (105, 192), (320, 45), (320, 85), (576, 81)])
def test_a_side_that_falls_on_a_half_rounds_as_open_clips(side: tuple[int, int]) -> None:
    image = photograph(*side)
    theirs = image_transform(224, is_train=False, resize_mode="longest")
    pixels = Preprocess(224, resize_mode="longest")(image)
    np.testing.assert_allclose(pixels, theirs(image).numpy(), rtol=0, atol=1e-3)


def test_mean_and_std_are_open_clips() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    image = photograph(50, 40)
    theirs = image_transform(24, is_train=False, mean=mean, std=std)
    np.testing.assert_allclose(Preprocess(24, mean, std)(image), theirs(image).numpy(), rtol=0, atol=1e-3)


def columns(*colours: str) -> Image.Image:
    """A picture two pixels high with a colour a column."""
    image = Image.new("RGB", (len(colours), 2))
    for x, colour in enumerate(colours):
        image.paste(colour, (x, 0, x + 1, 2))
    return image


def test_shortest_crops_the_middle() -> None:
    pixels = Preprocess(2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(columns("red", "lime", "blue", "red"))
    assert pixels.tolist() == [[[0, 0], [0, 0]], [[1, 0], [1, 0]], [[0, 1], [0, 1]]]


def test_longest_pads_with_black() -> None:
    pixels = Preprocess(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize_mode="longest")(Image.new("RGB", (4, 2), "white"))
    assert pixels[0].tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]


def test_squash_keeps_all_of_the_picture() -> None:
    image = Image.new("RGB", (8, 2), "black")
    image.paste("white", (4, 0, 8, 2))
    pixels = Preprocess(2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", "squash")(image)
    assert bool((pixels[:, :, 0] < 0.2).all())
    assert bool((pixels[:, :, 1] > 0.8).all())


def test_a_picture_is_not_changed_and_pixels_are_contiguous_float32() -> None:
    image = photograph(30, 20)
    before = image.tobytes()
    pixels = Preprocess(16)(image)
    assert image.tobytes() == before
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.float32, (3, 16, 16), True)


def test_normalize_is_as_by_hand() -> None:
    preprocess = Preprocess(1, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    grey = np.full((3, 1, 1), 0.75, np.float32)
    assert preprocess.normalize(grey).ravel().tolist() == [0.5, 2.0, 0.375]  # .25/.5, .5/.25, .75/2
    assert preprocess.denormalize(np.ones((3, 1, 1), np.float32)).ravel().tolist() == [1.0, 0.5, 2.0]


def test_denormalize_inverts_normalize_also_out_of_range_and_in_batches() -> None:
    pixels = np.random.default_rng(0).uniform(-2, 3, (4, 3, 5, 6)).astype(np.float32)
    preprocess = Preprocess(5)
    kept = pixels.copy()
    np.testing.assert_allclose(preprocess.denormalize(preprocess.normalize(pixels)), pixels, rtol=0, atol=1e-6)
    np.testing.assert_allclose(preprocess.normalize(preprocess.denormalize(pixels)), pixels, rtol=0, atol=2e-6)
    assert np.array_equal(pixels, kept)
    assert preprocess.normalize(pixels).dtype == preprocess.denormalize(pixels).dtype == np.float32


def test_the_valid_range_is_black_to_white() -> None:
    low, high = Preprocess(8).valid_range()
    assert low.shape == high.shape == (3, 1, 1)
    # -mean / std and (1 - mean) / std with OpenAI's constants, as the method's page lists them
    np.testing.assert_allclose(low.ravel(), [-1.79226, -1.75210, -1.48022], atol=1e-5)
    np.testing.assert_allclose(high.ravel(), [1.93034, 2.07488, 2.14590], atol=1e-5)


def test_no_picture_leaves_the_valid_range_and_black_and_white_reach_it() -> None:
    preprocess = Preprocess(16)
    low, high = preprocess.valid_range()
    for mode in RESIZE_MODES:
        pixels = Preprocess(16, resize_mode=mode)(photograph(60, 33))  # type: ignore[arg-type]
        assert bool(((pixels >= low) & (pixels <= high)).all())
    assert bool((preprocess(Image.new("RGB", (9, 9), "black")) == low).all())
    assert bool((preprocess(Image.new("L", (9, 9), 255)) == high).all())


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
def test_save_then_from_folder_is_the_identity(interpolation: str, resize_mode: str, tmp_path: Path) -> None:
    preprocess = Preprocess(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), interpolation, resize_mode)  # type: ignore[arg-type]
    preprocess.save(tmp_path)
    assert Preprocess.from_folder(tmp_path) == preprocess


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])  # it has no way to say "longest"
def test_transformers_reads_the_file_and_gives_the_same_pixels(
    interpolation: str, resize_mode: str, tmp_path: Path
) -> None:
    from transformers import CLIPImageProcessorPil

    preprocess = Preprocess(24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), interpolation, resize_mode)  # type: ignore[arg-type]
    preprocess.save(tmp_path)
    image = photograph(70, 50)
    theirs = CLIPImageProcessorPil.from_pretrained(str(tmp_path))(images=image, return_tensors="np")
    np.testing.assert_allclose(theirs["pixel_values"][0], preprocess(image), rtol=0, atol=1e-3)


@pytest.mark.parametrize("settings", [{"interpolation": "lanczos"}, {"resize_mode": "crop"}])
def test_an_unknown_way_to_resize_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ModelFileError, match=next(iter(settings.values()))):
        Preprocess(32, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        None,  # no file
        "",
        "{",
        "[]",
        "{}",  # another program's file
        '{"d4c": 3}',
        '{"d4c": {"size": 32}}',
        '{"d4c": {"size": 32, "mean": 3, "std": [1, 1, 1]}}',
        '{"d4c": {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "colour": "grey"}}',
        '{"d4c": {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "resize_mode": "crop"}}',
    ],
)
def test_a_file_that_says_something_else_is_one_error(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"preprocessor_config\.json"):
        Preprocess.from_folder(tmp_path)


def test_a_file_that_is_not_text_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(json.dumps({"d4c": "é"}).encode("utf-16"))
    with pytest.raises(ModelFileError, match=r"preprocessor_config\.json"):
        Preprocess.from_folder(tmp_path)

import numpy as np
import pytest
import torch
from torch import Tensor

from d4c.images import ImageSet, contact_sheet
from d4c.inputs import Preprocess

PLAIN = Preprocess(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
GAP = 6


def flat(*values: float, size: int = 32) -> Tensor:
    """One grey image a value, [image, 3, size, size]."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, size, size).contiguous()


def sheet_of(pixels: Tensor, preprocess: Preprocess = PLAIN, prompts: tuple[str, ...] = (), **how: int) -> np.ndarray:
    """The sheet as [height, width, 3]; image i stands over prompt i where there are any."""
    images = ImageSet.unlabelled(pixels, "test")
    if prompts:
        index = torch.arange(len(pixels))
        images = ImageSet(pixels, index, images.boxes, prompts, "test")
    picture = contact_sheet(images, preprocess, **how)
    assert picture.mode == "RGB"
    return np.asarray(picture)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, 0),
        (1.0, 255),
        (0.2, 51),  # 0.2 * 255
        (0.999, 255),  # 254.7 is rounded, not cut
        (-0.001, 0),
        (-0.01, 0),  # -2.55, which wraps around to 253
        (1.01, 255),  # 257.55, which wraps around to 1
        (-1.0, 0),
        (2.0, 255),
        (100.0, 255),
        (-100.0, 0),
    ],
)
def test_values_out_of_range_are_clipped_and_not_wrapped_around(value: float, shown: int) -> None:
    sheet = sheet_of(flat(value))
    assert np.unique(sheet[GAP : GAP + 96, GAP : GAP + 96]).tolist() == [shown]


def test_pixels_leave_the_normalised_space_channel_by_channel() -> None:
    preprocess = Preprocess(32, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 0.2))
    sheet = sheet_of(flat(1.0), preprocess)
    assert sheet[GAP, GAP].tolist() == [255, 128, 51]  # 1.0, 0.5 (127.5 to the even), 0.2


@pytest.mark.parametrize(
    ("num", "size", "captions", "columns", "width", "height"),
    [
        (10, 32, False, 8, 8 * (96 + 6) + 6, 2 * (96 + 6) + 6),
        (10, 32, True, 8, 8 * (96 + 6) + 6, 2 * (96 + 16 + 6) + 6),  # captions are 16 high
        (3, 32, False, 8, 3 * (96 + 6) + 6, 1 * (96 + 6) + 6),  # no empty columns
        (8, 32, False, 4, 4 * (96 + 6) + 6, 2 * (96 + 6) + 6),
        (1, 40, False, 8, 120 + 12, 120 + 12),  # 3 x 40 is the first whole factor that gives 96
        (1, 96, False, 8, 96 + 12, 96 + 12),
        (1, 100, False, 8, 100 + 12, 100 + 12),
        (70, 8, False, 8, 8 * (96 + 6) + 6, 8 * (96 + 6) + 6),  # 64 at most
    ],
)
def test_size_is_as_by_hand(num: int, size: int, captions: bool, columns: int, width: int, height: int) -> None:
    prompts = tuple(f"prompt {i}" for i in range(num)) if captions else ()
    sheet = sheet_of(flat(*[0.5] * num, size=size), prompts=prompts, columns=columns)
    assert sheet.shape == (height, width, 3)


def test_images_stand_row_by_row_between_white_gaps() -> None:
    values = [i / 10 for i in range(10)]
    sheet = sheet_of(flat(*values), columns=4, limit=9)
    for i, value in enumerate(values[:9]):
        x, y = GAP + i % 4 * 102, GAP + i // 4 * 102
        assert np.unique(sheet[y : y + 96, x : x + 96]).tolist() == [round(value * 255)]
    gaps = np.ones(sheet.shape[:2], bool)
    for i in range(9):
        x, y = GAP + i % 4 * 102, GAP + i // 4 * 102
        gaps[y : y + 96, x : x + 96] = False
    assert bool((sheet[gaps] == 255).all())


def test_small_images_are_enlarged_without_smoothing() -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tile = sheet_of(pixels)[GAP : GAP + 96, GAP : GAP + 96]
    expected = (pixels[0].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
    assert np.array_equal(tile, expected.repeat(3, axis=0).repeat(3, axis=1))


def test_each_image_stands_over_its_own_prompt() -> None:
    one, two = "a photo of a cat.", "a photo of a dog."
    both, swapped, same = (sheet_of(flat(1.0, 1.0), prompts=p) for p in ((one, two), (two, one), (one, one)))
    left, right = (slice(GAP + i * 102, GAP + i * 102 + 96) for i in (0, 1))
    caption = slice(GAP + 96, GAP + 96 + 16)
    assert both[caption, left].min() < 100  # there is writing
    assert np.array_equal(both[caption, left], swapped[caption, right])
    assert np.array_equal(same[caption, left], same[caption, right])
    assert not np.array_equal(both[caption, left], both[caption, right])


def test_an_image_without_a_prompt_has_no_caption() -> None:
    pixels = flat(1.0, 1.0)
    boxes = torch.full((2, 4), -1)
    images = ImageSet(pixels, torch.tensor([-1, 0]), boxes, ("a photo of a cat.",), "test")
    sheet = np.asarray(contact_sheet(images, PLAIN))
    assert sheet[:, GAP : GAP + 96].min() == 255
    assert sheet[:, GAP + 102 :].min() < 100


def test_a_long_prompt_stays_under_its_image() -> None:
    sheet = sheet_of(flat(1.0, 1.0), prompts=("a photo of a " + "very " * 60 + "big cat.", ""))
    assert sheet[GAP + 96 :, GAP : GAP + 96].min() < 100
    assert sheet[:, GAP + 96 :].min() == 255

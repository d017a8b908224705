import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d4c.errors import ImageFileError, UsageError
from d4c.images import load_image_folder
from d4c.inputs import Preprocess

PREPROCESS = Preprocess(16)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, one in a subfolder, among other files."""
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b/x.PNG", "c.bmp", "d.tiff", "e.gif")):
        picture(seed).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "a.png.bak").write_bytes(b"")
    return folder


def test_pictures_are_read_in_the_order_of_their_paths_as_the_model_sees_them(folder: Path) -> None:
    images = load_image_folder(folder, PREPROCESS)
    assert (images.source, images.settings, len(images)) == ("folder", {"files": 5}, 5)
    for pixels, name in zip(images.pixels, ("a.png", "b/x.PNG", "c.bmp", "d.tiff", "e.gif"), strict=True):
        with Image.open(folder / name) as image:
            assert torch.equal(pixels, torch.from_numpy(PREPROCESS(image)))
    # these three formats lose nothing, so the pictures are those that were drawn
    for at, seed in ((0, 0), (1, 1), (2, 2)):
        assert torch.equal(images.pixels[at], torch.from_numpy(PREPROCESS(picture(seed))))


def test_a_limit_takes_the_first(folder: Path) -> None:
    assert torch.equal(
        load_image_folder(folder, PREPROCESS, 2).pixels, load_image_folder(folder, PREPROCESS).pixels[:2]
    )
    assert len(load_image_folder(folder, PREPROCESS, 100)) == 5


def test_sizes_and_modes_may_differ(tmp_path: Path) -> None:
    for i, mode in enumerate(("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16")):
        image = Image.new("L", (20 + i, 50 - i), 200)
        image.convert(mode).save(tmp_path / f"{i}.tiff")
    images = load_image_folder(tmp_path, PREPROCESS)
    assert images.pixels.shape == (7, 3, 16, 16)


def test_a_folder_that_is_not_there_is_the_users_error(folder: Path) -> None:
    for path in (folder / "none", folder / "a.png"):
        with pytest.raises(UsageError, match="no such folder") as error:
            load_image_folder(path, PREPROCESS)
        assert str(path) in str(error.value)


def test_a_folder_without_pictures_says_what_would_be_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ImageFileError, match=r"no pictures \(.*\.jpeg .*\.png"):
        load_image_folder(tmp_path, PREPROCESS)


def refused(path: Path) -> None:
    """The one bad picture among good ones is named."""
    picture().save(path.with_name("aaa.png"))
    with pytest.raises(ImageFileError) as error:
        load_image_folder(path.parent, PREPROCESS)
    assert str(error.value).startswith(f"{path}: not a picture that can be read: ")


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # Pillow says this of TIFFs before it gives up
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_a_truncated_picture_is_named(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"bad.{suffix}"
    picture().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


@pytest.mark.parametrize("content", [b"plain text", b"%PDF-1.7", b"\x00" * 100, b"<svg></svg>"])
def test_a_file_that_only_has_the_suffix_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    refused(tmp_path / "bad.png")


def test_a_png_whose_chunks_do_not_follow_each_other_is_named(tmp_path: Path) -> None:
    # The length of the pixels' chunk is too small, so that what comes next is no chunk.
    path = tmp_path / "bad.png"
    picture().save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = struct.pack(">I", 100)
    path.write_bytes(bytes(data))
    refused(path)


def test_a_picture_that_claims_a_monstrous_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # a bomb is more than twice as many
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "bad.png"
    picture().save(path)
    with pytest.raises(ImageFileError, match="exceeds limit") as error:
        load_image_folder(tmp_path, PREPROCESS)
    assert str(path) in str(error.value)

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from d4c.errors import ImageFileError
from d4c.images import ImageSet


def image_set(**changes: object) -> ImageSet:
    """Three images with everything that a set can say."""
    given = {
        "pixels": torch.randn(3, 3, 4, 5, generator=torch.Generator().manual_seed(0)),
        "prompt_index": torch.tensor([1, -1, 0]),
        "boxes": torch.tensor([[0, 1, 2, 3], [-1, -1, -1, -1], [1, 1, 3, 3]]),
        "prompts": ("a photo of a cat.", 'ein schöner "Tag" \N{GRINNING FACE}'),
        "source": "d4c",
        "seed": 2**40,
        "fingerprint": "0123abcd",
        "settings": {"steps": 60, "learning_rate": 0.05, "nested": {"valid": True, "start": None}, "list": [1, "a"]},
    }
    return ImageSet(**{**given, **changes})  # type: ignore[arg-type]


def assert_same(a: ImageSet, b: ImageSet) -> None:
    for name in ("pixels", "prompt_index", "boxes"):
        assert torch.equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in ("prompts", "source", "seed", "fingerprint", "settings"):
        assert getattr(a, name) == getattr(b, name)


def test_save_then_load_is_the_identity(tmp_path: Path) -> None:
    images = image_set()
    images.save(tmp_path / "images.safetensors")
    assert_same(ImageSet.load(tmp_path / "images.safetensors"), images)
    assert type(ImageSet.load(tmp_path / "images.safetensors").prompts) is tuple


def test_images_without_labels_survive_saving(tmp_path: Path) -> None:
    images = ImageSet.unlabelled(torch.zeros(2, 3, 4, 4), "noise", 5, valid=True)
    images.save(tmp_path / "images.safetensors")
    assert_same(ImageSet.load(tmp_path / "images.safetensors"), images)
    assert (images.prompt_index.tolist(), images.boxes.tolist()) == ([-1, -1], [[-1] * 4] * 2)
    assert (images.seed, images.settings, len(images)) == (5, {"valid": True}, 2)


def test_views_are_saved_by_their_values(tmp_path: Path) -> None:
    pixels = torch.randn(3, 5, 4, 6).transpose(0, 2)[1:, :3]  # [3, 3, 3, 6], not contiguous
    images = ImageSet.unlabelled(pixels, "test")
    images.save(tmp_path / "images.safetensors")
    assert_same(ImageSet.load(tmp_path / "images.safetensors"), images)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(3, 3, 4, 5, dtype=torch.float64),
        torch.zeros(3, 3, 4, 5, dtype=torch.float16),
        torch.zeros(3, 3, 4, 5, dtype=torch.uint8),
        torch.zeros(3, 1, 4, 5),
        torch.zeros(3, 4, 5, 3),  # channels last
        torch.zeros(3, 4, 5),
    ],
)
def test_pixels_of_another_form_are_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="need float32 pixels"):
        image_set(pixels=pixels)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_index": torch.zeros(2)},
        {"prompt_index": torch.zeros(3, 1)},
        {"boxes": torch.zeros(2, 4)},
        {"boxes": torch.zeros(3, 2)},
        {"boxes": torch.zeros(3)},
    ],
)
def test_labels_that_are_not_as_many_as_images_are_refused(changes: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="need prompt_index"):
        image_set(**changes)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_is_refused(value: float) -> None:
    pixels = torch.zeros(3, 3, 4, 5)
    pixels[2, 1, 3, 4] = value
    with pytest.raises(ImageFileError, match="from d4c hold values that are not finite"):
        image_set(pixels=pixels)


def refused(path: Path) -> None:
    with pytest.raises(ImageFileError) as error:
        ImageSet.load(path)
    assert str(error.value).startswith(f"{path}: not an image set: ")


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors")
    refused(tmp_path)


def test_a_file_cut_anywhere_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    image_set().save(path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, len(whole) // 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize("content", [b"not tensors at all", b"\x89PNG\r\n\x1a\n", b"\xff" * 64])
def test_another_kind_of_file_is_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "images.safetensors").write_bytes(content)
    refused(tmp_path / "images.safetensors")


def about_of(path: Path) -> dict[str, object]:
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["d4c.images"]))


@pytest.mark.parametrize(
    "about",
    [
        None,  # tensors of another program
        "{",
        "[]",
        "{}",
        '{"prompts": [], "source": "d4c", "colour": "grey"}',
        '{"prompts": 3, "source": "d4c"}',
        '{"prompts": []}',
    ],
)
def test_metadata_that_says_something_else_is_one_error(about: str | None, tmp_path: Path) -> None:
    images = image_set()
    tensors = {"pixels": images.pixels, "prompt_index": images.prompt_index, "boxes": images.boxes}
    path = tmp_path / "images.safetensors"
    save_file(tensors, path, None if about is None else {"d4c.images": about})
    refused(path)


def test_a_missing_tensor_a_wrong_shape_or_nan_in_the_file_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    images = image_set()
    images.save(path)
    metadata = {"d4c.images": json.dumps(about_of(path))}
    good = {"pixels": images.pixels, "prompt_index": images.prompt_index, "boxes": images.boxes}
    save_file(good, path, metadata)
    assert_same(ImageSet.load(path), images)
    for name, tensor in (
        ("pixels", images.pixels.double()),
        ("pixels", images.pixels * torch.nan),
        ("prompt_index", images.prompt_index[:2]),
        ("boxes", None),
    ):
        save_file({k: v for k, v in {**good, name: tensor}.items() if v is not None}, path, metadata)
        refused(path)

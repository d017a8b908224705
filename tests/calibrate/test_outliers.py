import torch
from torch import Tensor

from d4c.calibrate import without_outliers
from d4c.images import ImageSet
from d4c.models import Clip
from d4c.models.folding import fold_batchnorm


def image_set(pixels: Tensor, bright: list[int]) -> ImageSet:
    """Twenty pictures, some of them a thousand times as bright, each drawn towards its own number."""
    pixels = pixels.repeat(3, 1, 1, 1)[:20].clone()
    pixels[bright] *= 1000
    index = torch.arange(len(pixels))
    return ImageSet(pixels, index, index[:, None].expand(-1, 4), tuple(map(str, index)), "test")


def test_a_picture_on_which_the_model_runs_away_is_left_out_with_all_that_belongs_to_it(
    tiny_resnet: Clip, pixels: Tensor
) -> None:
    images = image_set(pixels, [3, 11])
    kept = without_outliers(fold_batchnorm(tiny_resnet), images, 10.0)
    rest = [i for i in range(20) if i not in (3, 11)]
    assert torch.equal(kept.pixels, images.pixels[rest])
    assert kept.prompt_index.tolist() == kept.boxes[:, 0].tolist() == rest


def test_what_is_frequent_is_how_images_are(tiny_resnet: Clip, pixels: Tensor) -> None:
    images = image_set(pixels, [3, 11, 12])
    assert without_outliers(fold_batchnorm(tiny_resnet), images, 10.0) is images


def test_ordinary_images_stay_and_so_do_all_where_nothing_is_too_much(tiny_resnet: Clip, pixels: Tensor) -> None:
    clip = fold_batchnorm(tiny_resnet)
    for images, factor in ((image_set(pixels, []), 10.0), (image_set(pixels, [3]), 0.0)):
        assert without_outliers(clip, images, factor) is images

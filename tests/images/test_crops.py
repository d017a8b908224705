import torch

from d4c.images import ImageSet, with_crops

SIZE = 20


def images() -> ImageSet:
    """A horizontal ramp and a vertical one, each drawn towards its own prompt."""
    ramp = torch.linspace(-1, 1, SIZE).expand(3, SIZE, SIZE)
    pixels = torch.stack([ramp, ramp.transpose(1, 2)]).contiguous()
    return ImageSet(pixels, torch.tensor([4, 7]), torch.tensor([[0, 0, 12, 12], [3, 4, 10, 10]]), (), "test")


def test_every_image_stands_before_its_own_crops() -> None:
    plain = images()
    shown = with_crops(plain, 3, seed=0)
    assert shown.prompt_index.tolist() == [4] * 4 + [7] * 4
    assert torch.equal(shown.pixels[::4], plain.pixels)
    assert torch.equal(shown.boxes[::4], plain.boxes)
    assert (shown.boxes[1:4] == -1).all()


def test_a_crop_shows_a_square_of_the_image_at_full_size() -> None:
    crops = with_crops(images(), 64, seed=0).pixels[1:65]  # of the horizontal ramp
    assert (crops - crops[:, :, :1]).abs().max() < 1e-5  # columns stay columns
    span = crops[:, 0, 0].amax(dim=1) - crops[:, 0, 0].amin(dim=1)  # of side s, so many steps less one of 2 / 19
    assert 2 * 11 / 19 - 1e-5 < float(span.min()) < 2 * 12.5 / 19  # 12 pixels, 60 %
    assert 2 * 17.5 / 19 < float(span.max()) <= 2
    mirrored = (crops[:, 0, 0, 0] > crops[:, 0, 0, -1]).float().mean()
    assert 0.3 < float(mirrored) < 0.7
    assert len({round(float(x), 4) for x in crops[:, 0, 0].mean(dim=1)}) > 8  # here and there, whole pixels apart


def test_crops_stay_within_the_image_s_values() -> None:
    shown = with_crops(images(), 8, seed=1)
    assert shown.pixels.amin() >= -1
    assert shown.pixels.amax() <= 1


def test_the_seed_decides_and_no_crops_change_nothing() -> None:
    plain = images()
    assert torch.equal(with_crops(plain, 2, seed=3).pixels, with_crops(plain, 2, seed=3).pixels)
    assert not torch.equal(with_crops(plain, 2, seed=3).pixels, with_crops(plain, 2, seed=4).pixels)
    assert with_crops(plain, 0, seed=3) is plain

import pytest
import torch

from d4c.images import procedural_pixels
from d4c.inputs import Preprocess
from d4c.synthesize.canvas import Pixels, Pyramid, level_sizes

PREPROCESS = Preprocess(size=28)


def start(valid: bool = True) -> torch.Tensor:
    return procedural_pixels("one_over_f", 3, PREPROCESS, 0, valid=valid)


@pytest.mark.parametrize(("size", "expected"), [
    (1, [1]), (8, [1, 2, 4, 8]), (28, [1, 2, 4, 7, 14, 28]), (224, [1, 2, 4, 7, 14, 28, 56, 112, 224])
])  # fmt: skip
def test_levels_halve_down_to_one_pixel(size: int, expected: list[int]) -> None:
    assert level_sizes(size) == expected


def test_a_pyramid_begins_with_the_pictures_it_is_given() -> None:
    low, high = (torch.from_numpy(v) for v in PREPROCESS.valid_range())
    pictures = low + (high - low) * torch.rand(2, 3, 28, 28).clamp(0.05, 0.95)
    torch.testing.assert_close(Pyramid(pictures, PREPROCESS).render(), pictures, rtol=1e-4, atol=1e-5)


def test_a_pyramid_never_leaves_what_a_picture_can_hold() -> None:
    canvas = Pyramid(start(), PREPROCESS)
    low, high = (torch.from_numpy(v) for v in PREPROCESS.valid_range())
    with torch.no_grad():
        for level in canvas.parameters:
            level.add_(5 * torch.randn_like(level))
    x = canvas.render()
    assert bool(((x >= low) & (x <= high)).all())
    assert float(x.detach().std()) > 0.1


def test_the_coarsest_level_moves_the_whole_picture_and_the_finest_one_pixel() -> None:
    canvas = Pyramid(torch.zeros(1, 3, 28, 28), PREPROCESS)
    before = canvas.render().detach()
    with torch.no_grad():
        canvas.parameters[0][0, 1] += 1
    moved = canvas.render().detach() - before
    assert bool((moved[0, 1] > 0.1).all())
    assert not bool(moved[0, [0, 2]].any())
    with torch.no_grad():
        canvas.parameters[-1][0, 2, 5, 6] += 1
    moved = canvas.render().detach() - before
    assert int((moved[0, 2] != 0).sum()) == 1


def test_gradients_reach_every_level() -> None:
    canvas = Pyramid(start(), PREPROCESS)
    canvas.render().square().sum().backward()
    assert all(level.grad is not None and bool(level.grad.any()) for level in canvas.parameters)


@pytest.mark.parametrize("valid", [True, False])
def test_pixels_are_clamped_only_where_they_must_be_valid(valid: bool) -> None:
    canvas = Pixels(start(valid), PREPROCESS, valid=valid)
    with torch.no_grad():
        canvas.x.add_(100)
    canvas.settle()
    _, high = (torch.from_numpy(v) for v in PREPROCESS.valid_range())
    assert bool((canvas.render() <= high).all()) == valid

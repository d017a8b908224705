import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d4c.synthesize.views import background, blur, box_mask, enlarge_boxes, perturb, sample_boxes

SIZE = 20


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(num: int, size: int = SIZE) -> Tensor:
    return F.interpolate(torch.randn(num, 3, 5, 5, generator=seeded()), size=size, mode="bilinear")


def boxes_of(num: int, size: int = SIZE) -> Tensor:
    return sample_boxes(num, size, seeded(1))


def test_boxes_at_224_pixels_have_141_to_187_and_reach_every_border() -> None:
    # floor(sqrt(0.4 * 224^2)) = floor(sqrt(20070)) = 141; floor(sqrt(0.7 * 224^2)) = floor(sqrt(35123)) = 187
    top, left, height, width = boxes_of(50_000, 224).T
    assert bool((height == width).all())
    assert (height.min().item(), height.max().item()) == (141, 187)
    # The area is uniform from 0.4 to 0.7: mean 0.55, less up to a pixel of rounding down.
    assert (height * width).double().mean().item() / 224**2 == pytest.approx(0.55 - 0.5 * 2 * 165 / 224**2, abs=2e-3)
    for start in (top, left):
        assert start.min().item() == 0
        assert (start + height).max().item() == 224
        middle = start / (224 - height)  # uniform from 0 to 1
        assert middle.mean().item() == pytest.approx(0.5, abs=0.01)
        assert middle.std().item() == pytest.approx(12**-0.5, abs=0.01)


def test_enlarging_all_boxes_at_once_is_interpolating_each() -> None:
    x, boxes = smooth(12), boxes_of(12)
    boxes[0] = torch.tensor([0, 0, SIZE, SIZE])
    each = [
        F.interpolate(x[i : i + 1, :, top : top + h, left : left + w], size=SIZE, mode="bilinear", align_corners=False)
        for i, (top, left, h, w) in enumerate(boxes.tolist())
    ]
    torch.testing.assert_close(enlarge_boxes(x, boxes), torch.cat(each), rtol=1e-4, atol=1e-5)


def test_the_background_is_the_image_without_its_box_under_faint_noise() -> None:
    x, boxes = smooth(6), boxes_of(6)
    expected = x.clone()
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        expected[i, :, top : top + h, left : left + w] = 0
    noise = background(x, boxes, seeded()) - expected
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    inside = box_mask(boxes, SIZE).expand_as(x)
    assert noise[inside].std().item() == pytest.approx(0.1, rel=0.05)  # in the hole and all around it
    assert noise[~inside].std().item() == pytest.approx(0.1, rel=0.05)


def perturb_each(x: Tensor, generator: torch.Generator) -> Tensor:
    """`perturb` image by image and pixel by pixel, on the same draws in the same order."""

    def uniform(low: float, high: float) -> list[float]:
        return torch.empty(len(x)).uniform_(low, high, generator=generator).tolist()

    angle_range, shift = math.radians(15), (-0.05, 0.05)
    flips, angles, scales = uniform(0, 1), uniform(-angle_range, angle_range), uniform(0.95, 1.05)
    right, down = uniform(*shift), uniform(*shift)
    contrast, brightness, saturation = uniform(0.6, 1.4), uniform(0.6, 1.4), uniform(0.6, 1.4)
    blurs = uniform(0, 1)
    centres, size = torch.randint(x.shape[-1], (len(x), 2), generator=generator).tolist(), x.shape[-1]
    erasures = uniform(0, 1)
    out = []
    for i, image in enumerate(x):
        y = image.flip(-1) if flips[i] < 0.5 else image
        y = _turned(y, angles[i], scales[i], right[i], down[i])
        y = y * contrast[i] * brightness[i]
        y = saturation[i] * y + (1 - saturation[i]) * y.mean(dim=0)
        if blurs[i] < 0.3:
            padded = F.pad(y, (1, 1, 1, 1))
            taps = [(a, b, (2 - abs(a - 1)) * (2 - abs(b - 1)) / 16) for a in range(3) for b in range(3)]
            y = sum((w * padded[:, a : a + size, b : b + size] for a, b, w in taps), torch.zeros_like(y))
        if erasures[i] < 0.3:
            side = size // 5
            top, left = (max(c - side // 2, 0) for c in centres[i])
            y = y.clone()
            y[:, top : top + side, left : left + side] = 0
        out.append(y)
    return torch.stack(out)


def _turned(image: Tensor, angle: float, scale: float, right: float, down: float) -> Tensor:
    """Output pixel (u, v) in -1 .. 1 shows the input at scale R(angle) (u, v) + shift; bilinear, zero outside."""
    size, out = image.shape[-1], torch.zeros_like(image)
    for i in range(size):
        for j in range(size):
            u, v = (2 * j + 1) / size - 1, (2 * i + 1) / size - 1
            column = ((scale * (math.cos(angle) * u - math.sin(angle) * v) + right + 1) * size - 1) / 2
            row = ((scale * (math.sin(angle) * u + math.cos(angle) * v) + down + 1) * size - 1) / 2
            for a in (math.floor(row), math.floor(row) + 1):
                for b in (math.floor(column), math.floor(column) + 1):
                    if 0 <= a < size and 0 <= b < size:
                        out[:, i, j] += (1 - abs(row - a)) * (1 - abs(column - b)) * image[:, a, b]
    return out


def test_perturbing_all_images_at_once_is_perturbing_each() -> None:
    x = smooth(40)
    torch.testing.assert_close(perturb(x, seeded()), perturb_each(x, seeded()), rtol=1e-4, atol=1e-4)


def test_a_blur_keeps_a_flat_middle_and_spreads_a_point() -> None:
    point = torch.zeros(1, 2, 5, 5)
    point[0, 1, 2, 2] = 16
    spread = blur(point)
    assert spread[0, 1, 1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert spread.sum().item() == 16
    assert not spread[0, 0].any()


VIEWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "enlarge": enlarge_boxes,
    "background": lambda x, boxes: background(x, boxes, seeded()),
    "perturb": lambda x, _: perturb(x, seeded()),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views_are_differentiable_and_images_do_not_mix(view: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, boxes = smooth(5).requires_grad_(), boxes_of(5)
    weights, direction = (torch.randn(x.shape, generator=seeded(seed)) for seed in (4, 5))
    (gradient,) = torch.autograd.grad((view(x, boxes)[2] * weights[2]).sum(), x)
    assert bool((gradient[[0, 1, 3, 4]] == 0).all())
    assert gradient[2].norm() > 0
    # Every view is affine in the image, so a step of any length changes it by gradient times step.
    change = ((view(x + direction, boxes) - view(x, boxes))[2] * weights[2]).sum()
    torch.testing.assert_close((gradient * direction).sum(), change, rtol=1e-3, atol=1e-3)

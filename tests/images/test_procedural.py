import numpy as np
import pytest
import torch
from torch import Tensor

from d4c.images import PROCEDURES, clamp_valid, procedural_pixels, procedural_set
from d4c.images.procedural import MAX_LEAF, MIN_LEAF, dead_leaves, one_over_f, white_noise
from d4c.inputs import Preprocess

# Lucid's root of natural colours' covariance; the longest column is the first, 0.26^2 + 2 * 0.27^2 = 0.2134.
ROOT = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]) / 0.2134**0.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slope_of(images: Tensor) -> float:
    """The exponent a of |F| ~ f^a: least squares of log mean amplitude on log frequency, zero frequency left out."""
    size = images.shape[-1]
    amplitude = np.abs(np.fft.fft2(images.numpy())).mean(axis=(0, 1)).ravel()  # [row x column]
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :]).ravel()
    return float(np.polyfit(np.log(frequency[1:]), np.log(amplitude[1:]), 1)[0])


def kurtosis(values: Tensor) -> float:
    """Fourth moment over squared second; 3 for a normal distribution, more for heavier tails."""
    deviation = (values - values.mean()).double()
    return float(deviation.pow(4).mean() / deviation.square().mean() ** 2)


@pytest.mark.parametrize("size", [32, 64, 45])
def test_amplitude_falls_as_one_over_frequency(size: int) -> None:
    assert slope_of(one_over_f(200, size, generator())) == pytest.approx(-1, abs=0.05)


def test_amplitude_still_falls_as_one_over_frequency_in_the_valid_range() -> None:
    assert slope_of(procedural_pixels("one_over_f", 200, Preprocess(64), 0)) == pytest.approx(-1, abs=0.1)


def test_another_slope_is_as_asked_and_white_noise_has_none() -> None:
    assert slope_of(one_over_f(200, 32, generator(), slope=2.0)) == pytest.approx(-2, abs=0.05)
    assert slope_of(white_noise(200, 32, generator())) == pytest.approx(0, abs=0.05)


def test_one_over_f_is_as_strong_across_as_along() -> None:
    x = one_over_f(200, 32, generator())
    across, along = x.diff(dim=3).square().mean(), x.diff(dim=2).square().mean()
    assert float(across / along) == pytest.approx(1, abs=0.05)


def test_colours_of_one_over_f_vary_together_as_natural_ones() -> None:
    x = one_over_f(1000, 32, generator())
    assert x.mean(dim=(2, 3)).abs().max() < 1e-5  # each image
    colours = x.permute(1, 0, 2, 3).reshape(3, -1).double().numpy()  # [channel, pixel]
    np.testing.assert_allclose(np.cov(colours), ROOT @ ROOT.T, atol=0.02)


def test_white_noise_is_standard_normal() -> None:
    x = white_noise(50, 32, generator())
    assert (float(x.mean()), float(x.std())) == pytest.approx((0, 1), abs=0.02)
    assert kurtosis(x) == pytest.approx(3, abs=0.1)


def test_dead_leaves_have_edges_that_one_over_f_has_not() -> None:
    leaves, noise = dead_leaves(40, 48, generator()), one_over_f(200, 48, generator())
    for dim in (2, 3):
        smooth = kurtosis(noise.diff(dim=dim))
        assert smooth == pytest.approx(3, abs=0.3)  # its gradients are normal
        assert kurtosis(leaves.diff(dim=dim)) > 2 * smooth


def test_a_further_leaf_hides_what_lies_under_its_disc_and_nothing_else() -> None:
    before, after = (dead_leaves(60, 48, generator(), leaves=n) for n in (20, 21))
    changed = (before != after).any(dim=1)  # [image, row, column]
    assert int(changed.flatten(1).any(dim=1).sum()) > 50
    for mask in changed:
        for lines in (mask, mask.T):
            for line in lines:  # a disc cuts a line in one piece, or not at all
                inside = line.nonzero().ravel()
                assert len(inside) == 0 or len(inside) == inside[-1] - inside[0] + 1
        rows, columns = mask.any(dim=1).nonzero().ravel(), mask.any(dim=0).nonzero().ravel()
        whole = len(rows) > 0 and min(rows[0], columns[0]) > 0 and max(rows[-1], columns[-1]) < 47
        assert not whole or abs(len(rows) - len(columns)) <= 1  # as high as wide


def test_leaves_become_rarer_with_the_cube_of_their_radius() -> None:
    size = 64
    bare, one = (dead_leaves(500, size, generator(1), leaves=n) for n in (0, 1))
    changed = (bare != one).any(dim=1)  # [image, row, column]
    edge = torch.ones(size, size, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    whole = changed[~(changed & edge).flatten(1).any(dim=1)]  # those that the border does not cut
    radius = (whole.flatten(1).sum(dim=1) / torch.pi).sqrt() / size
    # A leaf of radius r escapes the border with probability (1 - 2 r)^2.
    r = np.linspace(MIN_LEAF, MAX_LEAF, 10_001)
    density = r**-3 * (1 - 2 * r) ** 2
    for limit in (0.04, 0.08):
        expected = density[r > limit].sum() / density.sum()
        assert float((radius > limit).double().mean()) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("name", PROCEDURES)
def test_a_seed_decides_everything_and_nothing_else_does(name: str) -> None:
    preprocess = Preprocess(24)
    first = procedural_pixels(name, 3, preprocess, 7)
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert torch.equal(procedural_pixels(name, 3, preprocess, 7), first)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left alone
    assert not torch.equal(procedural_pixels(name, 3, preprocess, 8), first)
    assert len({image.sum().item() for image in first}) == 3


@pytest.mark.parametrize("name", PROCEDURES)
def test_valid_pixels_are_the_others_clamped_to_black_and_white(name: str) -> None:
    preprocess = Preprocess(24, mean=(0.5, 0.4, 0.6), std=(0.25, 0.5, 0.3))
    free, valid = (procedural_pixels(name, 40, preprocess, 0, valid=v).numpy() for v in (False, True))
    low = np.array([-2.0, -0.8, -2.0])[:, None, None]  # -mean / std
    high = np.array([2.0, 1.2, 4 / 3])[:, None, None]  # (1 - mean) / std
    assert bool(((free < low) | (free > high)).any())  # there was something to clamp
    np.testing.assert_allclose(valid, np.clip(free, low, high), atol=1e-6)


def test_clamping_is_per_channel_and_changes_no_input() -> None:
    pixels = torch.tensor([-9.0, 0.0, 9.0]).reshape(1, 1, 1, 3).expand(2, 3, 1, 3).contiguous()
    clamped = clamp_valid(pixels, Preprocess(1, mean=(0.5, 0.0, 1.0), std=(0.5, 0.5, 0.25)))
    assert clamped[1, :, 0].tolist() == [[-1, 0, 1], [0, 0, 2], [-4, 0, 0]]
    assert pixels.abs().max() == 9


@pytest.mark.parametrize("name", PROCEDURES)
def test_a_set_says_where_it_came_from(name: str) -> None:
    images = procedural_set(name, 5, Preprocess(16), 3, valid=False)
    assert torch.equal(images.pixels, procedural_pixels(name, 5, Preprocess(16), 3, valid=False))
    assert (images.source, images.seed, images.settings, images.prompts) == (name, 3, {"valid": False}, ())
    assert images.pixels.shape == (5, 3, 16, 16)
    assert images.prompt_index.tolist() == [-1] * 5

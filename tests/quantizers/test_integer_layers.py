"""Whole numbers against NumPy's int64, and against the float32 simulation of the same layer."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from d4c.quantizers.grids import AffineGrid, IntegerGrid, place_grid
from d4c.quantizers.integer_layers import IntegerAveragePool, IntegerConv2d, IntegerLinear, IntegerSum, integer_layer
from d4c.quantizers.layers import QuantConv2d, QuantLinear, UniformQuantizer


def quantizer(low: float, high: float) -> UniformQuantizer:
    return UniformQuantizer(place_grid(torch.tensor(low), torch.tensor(high), IntegerGrid(8, symmetric=False)))


def affine_of(weight: Tensor) -> AffineGrid:
    span = weight.reshape(len(weight), -1).abs().amax(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    return place_grid(-span, span, IntegerGrid(8, symmetric=True))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_linear_is_int64_arithmetic(generator: torch.Generator) -> None:
    linear = nn.Linear(300, 7).requires_grad_(False)
    layer, source = QuantLinear(linear, affine_of(linear.weight), nn.Identity()), quantizer(-1.5, 3)
    bias = torch.randint(-(2**29), 2**29, (7,), generator=generator)
    x = source(torch.randn(5, 300, generator=generator))
    found = IntegerLinear(layer, source, bias)(x)
    codes = np.rint(x.numpy() / source.scale.numpy()).astype(np.int64)
    total = codes @ layer.weight.codes().numpy().astype(np.int64).T + bias.numpy()
    unit = (source.scale * layer.weight.scale.reshape(-1)).numpy()
    np.testing.assert_array_equal(found.numpy(), total.astype(np.float32) * unit)


def test_a_convolution_gives_the_codes_of_what_follows(generator: torch.Generator) -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).requires_grad_(False)
    layer, source, target = QuantConv2d(conv, affine_of(conv.weight), nn.Identity()), quantizer(-1, 1), quantizer(-1, 2)
    bias = torch.tensor([5, -7, 0, 900])
    x = source(torch.randn(2, 3, 8, 8, generator=generator))
    found = IntegerConv2d(layer, source, bias, target)(x)
    codes = np.pad(np.rint(x.numpy() / source.scale.numpy()).astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    weight = layer.weight.codes().numpy().astype(np.int64)
    factor = (source.scale * layer.weight.scale.reshape(-1) / target.scale).numpy()
    for row, column in ((0, 0), (3, 3), (1, 2)):
        window = codes[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]  # [batch, channel, height, width]
        total = np.einsum("bchw,ochw->bo", window, weight) + bias.numpy()
        expected = np.rint(total.astype(np.float32) * factor) * target.scale.numpy()
        np.testing.assert_array_equal(found[:, :, row, column].numpy(), expected)
    assert torch.equal(target(found), target(target(found)))
    # the float32 simulation of the same layer: a code off now and then
    layer.bias = bias * source.scale * layer.weight.scale.reshape(-1)
    off = (target(layer(x)) - target(found)).abs() / target.scale
    assert off.max() <= 1.001
    assert (off > 0.5).float().mean() <= 1e-2


def test_without_a_quantizer_behind_it_a_convolution_is_float(generator: torch.Generator) -> None:
    conv = nn.Conv2d(2, 3, 2, stride=2, bias=False).requires_grad_(False)
    layer, source = QuantConv2d(conv, affine_of(conv.weight), nn.Identity()), quantizer(-1, 1)
    x = source(torch.randn(1, 2, 4, 4, generator=generator))
    torch.testing.assert_close(integer_layer(layer, source, None, None)(x), layer(x), rtol=1e-5, atol=1e-6)


def six_bits(scale: float, zero: float) -> UniformQuantizer:
    grid = IntegerGrid(6, symmetric=False)
    return UniformQuantizer(AffineGrid(torch.tensor([scale]), torch.tensor([zero]), grid))


def test_a_sum_rounds_as_its_codes_do_where_real_values_round_otherwise() -> None:
    first, second, target = six_bits(0.09125036, 34), six_bits(0.13146585, 0), six_bits(0.13698147, 0)
    a, b = (codes.reshape(-1) for codes in np.mgrid[0:64, 0:64].astype(np.float32))
    x, y = torch.from_numpy(a - 34) * first.scale, torch.from_numpy(b) * second.scale
    found = target(IntegerSum(first, second, target)(x, y)) / target.scale
    f = np.float32
    r_a, r_b = f(0.09125036) / f(0.13698147), f(0.13146585) / f(0.13698147)
    expected = np.clip(np.rint((a * r_a + (f(0) - f(34) * r_a)) + b * r_b), 0, 63)
    np.testing.assert_array_equal(found.round().numpy(), expected)
    plain = (target(torch.relu(x + y)) / target.scale).round().numpy()
    (others,) = np.nonzero(plain != expected)
    assert len(others) > 0
    exact = ((a - 34.0) * float(first.scale) + b * float(second.scale)) / float(target.scale)
    assert (np.abs(exact[others] % 1 - 0.5) < 1e-5).all()


def test_a_sum_below_zero_is_the_zero_point() -> None:
    first, second, target = six_bits(0.5, 32), six_bits(0.25, 10), six_bits(1.0, 7)
    found = IntegerSum(first, second, target)(torch.tensor([-3.0, 2.0]), torch.tensor([0.25, 1.5]))
    assert found.tolist() == [0.0, 3.0]  # relu(-2.75); code 10.5 rounds to 10, where the value 3.5 rounds to 4


def test_an_average_adds_codes_and_rounds_once(generator: torch.Generator) -> None:
    source, target = quantizer(0, 3), quantizer(0, 2)
    x = source(3 * torch.rand(2, 5, 6, 4, generator=generator))
    found = IntegerAveragePool(2, source, target)(x)
    sums = np.rint(x.numpy() / source.scale.numpy()).astype(np.int64).reshape(2, 5, 3, 2, 2, 2).sum(axis=(3, 5))
    factor = source.scale.numpy() * np.float32(0.25) / target.scale.numpy()
    np.testing.assert_array_equal(found.numpy(), np.rint(sums.astype(np.float32) * factor) * target.scale.numpy())


def test_an_average_half_way_between_two_codes_rounds_to_the_even_one() -> None:
    source, target = six_bits(0.3, 0), six_bits(0.6, 0)
    codes = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]], [[[3.0, 3.0], [3.0, 3.0]]]])  # 0.5 and 1.5 codes
    found = IntegerAveragePool(2, source, target)(codes * source.scale) / target.scale
    assert found.flatten().tolist() == [0.0, 2.0]

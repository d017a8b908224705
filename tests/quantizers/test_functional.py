import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d4c.quantizers.functional import dequantize, fake_quantize, fake_quantize_per_token, quantize
from d4c.quantizers.grids import IntegerGrid


@pytest.mark.parametrize(
    ("symmetric", "scale", "zero_point", "x", "codes"),
    [
        # x / s = -2 -1 -.5 .5 1.5 2 10, rounded -2 -1 0 0 2 2 10, plus 1, clamped to 0 .. 3
        (False, 0.5, 1.0, [-1.0, -0.5, -0.25, 0.25, 0.75, 1.0, 5.0], [0, 0, 1, 1, 3, 3, 3]),
        # rounded -3 -2 0 0 2 2, clamped to -2 .. 1
        (True, 1.0, 0.0, [-3.0, -1.5, -0.5, 0.5, 1.5, 2.5], [-2, -2, 0, 0, 1, 1]),
    ],
)
def test_codes_by_hand_with_ties_to_even(
    symmetric: bool, scale: float, zero_point: float, x: list[float], codes: list[int]
) -> None:
    grid, s, z = IntegerGrid(2, symmetric), torch.tensor(scale), torch.tensor(zero_point)
    found = quantize(torch.tensor(x), s, z, grid)
    assert found.tolist() == codes
    assert dequantize(found, s, z).tolist() == [(q - zero_point) * scale for q in codes]


@pytest.mark.parametrize("num_bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_torch_per_tensor_and_per_channel(num_bits: int, symmetric: bool) -> None:
    grid = IntegerGrid(num_bits, symmetric)
    x = torch.randn(5, 400, generator=torch.Generator().manual_seed(num_bits))  # no exact ties, where torch differs
    zeros = torch.zeros(5) if symmetric else torch.arange(5.0).clamp(max=grid.qmax)
    scales = 3 / grid.qmax * torch.linspace(0.5, 1.5, 5)
    per_tensor = torch.fake_quantize_per_tensor_affine(x, float(scales[1]), int(zeros[1]), grid.qmin, grid.qmax)
    torch.testing.assert_close(fake_quantize(x, scales[1], zeros[1], grid), per_tensor)
    per_channel = torch.fake_quantize_per_channel_affine(x, scales, zeros.int(), 0, grid.qmin, grid.qmax)
    torch.testing.assert_close(fake_quantize(x, scales[:, None], zeros[:, None], grid), per_channel)


@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30),
    scale=st.floats(2**-10, 100, width=32),
    num_bits=st.integers(2, 8),
)
def test_snapping_is_idempotent_and_monotone(values: list[float], scale: float, num_bits: int) -> None:
    grid, x = IntegerGrid(num_bits, symmetric=False), torch.tensor(sorted(values))
    s, z = torch.tensor(scale), torch.tensor(1.0)
    once = fake_quantize(x, s, z, grid)
    assert torch.equal(fake_quantize(once, s, z, grid), once)
    assert bool((once.diff() >= 0).all())


def test_gradients_are_straight_through_and_lsq() -> None:
    # Codes 0 .. 3 around z = 1 reach -1 .. 2. d/dx: 0 where clipped.
    # d/ds: qmin - z = -1 below, round(x / s) - x / s inside, qmax - z = 2 above.
    x = torch.tensor([-3.0, 0.3, 2.0, 5.0], requires_grad=True)
    scale = torch.ones(4, requires_grad=True)
    y = fake_quantize(x, scale, torch.tensor(1.0), IntegerGrid(2, symmetric=False))
    assert y.tolist() == [-1, 0, 2, 2]
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(scale.grad, torch.tensor([-1.0, -0.3, 0.0, 2.0]))


@pytest.mark.parametrize("shape", [(), (1, 6, 1)])
@pytest.mark.parametrize("learned", [(True, True), (True, False), (False, True)])
def test_values_and_gradients_are_those_of_the_composed_operations(
    learned: tuple[bool, bool], shape: tuple[int, ...]
) -> None:
    generator, grid = torch.Generator().manual_seed(0), IntegerGrid(4, symmetric=False)
    x = torch.randn(5, 6, 7, generator=generator)
    x[0, 0, :2] = torch.tensor([1e30, -1e30])
    scale, zero_point = torch.rand(shape, generator=generator) + 0.1, torch.full(shape, 6.0)
    weights = torch.randn(x.shape, generator=generator)

    def composed(x: Tensor, s: Tensor) -> Tensor:
        rounded = x / s + ((x / s).round() - x / s).detach()
        return ((rounded + zero_point).clamp(grid.qmin, grid.qmax) - zero_point) * s

    results = []
    for snap in (lambda x, s: fake_quantize(x, s, zero_point, grid), composed):
        values, steps = (t.clone().requires_grad_(wanted) for t, wanted in zip((x, scale), learned, strict=True))
        y = snap(values, steps)
        (y * weights).sum().backward()
        results.append((y.detach(), values.grad, steps.grad))
    assert torch.equal(results[0][0], fake_quantize(x, scale, zero_point, grid))  # without gradients the same values
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("symmetric", "token", "snapped"),
    [
        (False, [-1.0, 0.0, 2.0, 0.6], [-1.0, 0.0, 2.0, 1.0]),  # scale (2 + 1) / 3, zero point 1
        (False, [3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0]),  # constant: 0 .. 3
        (True, [-1.0, 0.4, 1.0, 0.0], [-1.0, 0.0, 1.0, 0.0]),  # scale 1 / 1
        (False, [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
        (True, [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
        (False, [1e-44, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),  # no normal float32 is a small enough step
    ],
)
def test_each_token_has_its_own_grid(symmetric: bool, token: list[float], snapped: list[float]) -> None:
    grid = IntegerGrid(2, symmetric)
    other = [100.0, -50.0, 3.0, 1.0]
    both = fake_quantize_per_token(torch.tensor([[token, other]]), grid)
    assert both[0, 0].tolist() == snapped
    assert torch.equal(fake_quantize_per_token(torch.tensor(token), grid), both[0, 0])  # one token, no other axis

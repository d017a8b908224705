import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from d4c.errors import CalibrationError
from d4c.quantizers.functional import dequantize, quantize
from d4c.quantizers.grids import IntegerGrid, place_grid
from d4c.quantizers.layers import QuantLinear, UniformQuantizer
from d4c.quantizers.pair_safe import is_pair_safe, pair_safe_span
from d4c.recipes import Reconstruct
from d4c.reconstruct.learn import (
    DroppingQuantizer,
    Samples,
    error_over_dim1,
    learn,
    lsq_scale,
    random_mask,
    unit_error,
)
from d4c.reconstruct.learned import Learned
from d4c.reconstruct.units import SharedInput, Unit

CONFIG = Reconstruct(iterations=600)


def linear_unit(
    inputs: int, outputs: int, num_bits: int, seed: int, quantizer: nn.Module | None = None, pair_safe: bool = False
) -> Unit:
    """One quantized linear, alone; weights as small as a network's, so that the penalty's weight suits the error."""
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(0.05 * torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)))
    linear.requires_grad_(False)
    span = pair_safe_span(linear.weight)[:, None] if pair_safe else linear.weight.abs().amax(1, keepdim=True)
    affine = place_grid(-span, span, IntegerGrid(num_bits, symmetric=True))
    layers: list[nn.Module] = [QuantLinear(linear, affine, nn.Identity())]
    return Unit(
        "unit", SharedInput(quantizer or nn.Identity(), layers), SharedInput(nn.Identity(), [linear]), "", "",
        {"layer": "layers.0.weight"}, ("quantizer",) if quantizer else (), frozenset(), whole_samples=False,
    )  # fmt: skip


def correlated(unit: Unit, num: int, seed: int) -> Samples:
    """Inputs whose channels go together, so that errors of rounding may cancel."""
    generator = torch.Generator().manual_seed(seed)
    inputs = unit.float_weight("layer").shape[1]
    x = torch.randn(num, 1, generator=generator) + 0.5 * torch.randn(num, inputs, generator=generator)
    return Samples(x, x, unit.reference(x), None)


def fit(unit: Unit, samples: Samples, config: Reconstruct = CONFIG, **arguments: object) -> Learned:
    settings = {"scale_learning_rate": 4e-5, "report": lambda _: None} | arguments
    return learn(unit, samples, 32, config, generator=torch.Generator().manual_seed(7), **settings)  # type: ignore[arg-type]


def error_of(unit: Unit, samples: Samples, codes: Tensor) -> float:
    """Mean over samples of the squared output error, summed over channels, in float64."""
    weight = unit.grid_weight("layer")
    change = dequantize(codes, weight.scale, weight.zero_point).double() - unit.float_weight("layer").double()
    return float((samples.quantized.double() @ change.T).square().sum(dim=1).mean())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_bits", [3, 4])
def test_learned_rounding_beats_nearest_and_comes_close_to_the_best_of_all(num_bits: int, seed: int) -> None:
    unit = linear_unit(9, 1, num_bits, seed)
    samples, weight = correlated(unit, 256, seed), unit.float_weight("layer")
    affine = unit.grid_weight("layer").affine
    down = (weight / affine.scale).floor()
    choices = [
        error_of(unit, samples, (down + torch.tensor(up)).clamp(affine.grid.qmin, affine.grid.qmax))
        for up in itertools.product((0.0, 1.0), repeat=9)
    ]
    nearest = error_of(unit, samples, quantize(weight, affine.scale, affine.zero_point, affine.grid))
    learned = error_of(unit, samples, fit(unit, samples).codes["layer"])
    assert learned <= nearest * (1 + 1e-6)
    assert learned <= 1.25 * min(choices)  # descent ends among the best of 512, nearest is up to 17 times worse


def test_short_runs_learn_faster_up_to_a_limit() -> None:
    # 1e-3 at 20,000 iterations; 10 times fewer learn 10 times faster; 40 times would be 4e-2, above 2e-2
    rates = {n: Reconstruct(iterations=n).rounding_learning_rate for n in (40_000, 20_000, 2_000, 1_000, 500)}
    assert rates == pytest.approx({40_000: 1e-3, 20_000: 1e-3, 2_000: 1e-2, 1_000: 2e-2, 500: 2e-2})


def test_learning_is_repeatable_and_leaves_the_unit_alone() -> None:
    quantizer = UniformQuantizer(place_grid(torch.tensor(-2.0), torch.tensor(3.0), IntegerGrid(4, symmetric=False)))
    unit = linear_unit(6, 4, 3, 0, quantizer)
    before = {name: tensor.clone() for name, tensor in unit.module.state_dict().items()}
    samples, config = correlated(unit, 64, 1), Reconstruct(iterations=30)
    first = fit(unit, samples, config)
    torch.randn(5)  # the global generator plays no part
    second = fit(unit, samples, config)
    assert torch.equal(first.codes["layer"], second.codes["layer"])
    assert torch.equal(first.scales["quantizer"], second.scales["quantizer"])
    assert first.scales["quantizer"] != before["quantizer.scale"]
    assert all(torch.equal(before[name], tensor) for name, tensor in unit.module.state_dict().items())


def test_a_scale_far_too_wide_shrinks_and_the_error_with_it() -> None:
    wide = place_grid(torch.tensor(-40.0), torch.tensor(40.0), IntegerGrid(4, symmetric=False))
    unit = linear_unit(6, 4, 8, 0, UniformQuantizer(wide))
    samples = correlated(unit, 256, 1)
    before = unit_error(unit, samples)
    learned = fit(unit, samples, scale_learning_rate=5e-2)
    assert 0.03 < learned.scales["quantizer"] / wide.scale < 0.2  # values reach about 4, a tenth of 40
    unit.quantizer("quantizer").scale.copy_(learned.scales["quantizer"])
    assert unit_error(unit, samples) < 0.2 * before


def test_scales_move_by_a_cosine_course_of_steps() -> None:
    # Adam's step is the learning rate while the gradient is steady, and the course sums to (100 + 1) / 2 steps.
    wide = place_grid(torch.tensor(-40.0), torch.tensor(40.0), IntegerGrid(4, symmetric=False))
    unit = linear_unit(6, 4, 8, 0, UniformQuantizer(wide))
    learned = fit(unit, correlated(unit, 256, 1), Reconstruct(iterations=100), scale_learning_rate=1e-3)
    assert (wide.scale - learned.scales["quantizer"]).item() == pytest.approx(0.0505, rel=0.1)


def test_pair_safe_layers_stay_pair_safe() -> None:
    unit = linear_unit(8, 16, 8, 0, pair_safe=True)
    with torch.no_grad():  # every neighbour sum at the limit: rounding both up would pass it
        unit.float_weight("layer").copy_(torch.full((16, 8), 63.5 / 127))
    samples = correlated(unit, 64, 0)
    samples = replace(samples, target=samples.target + samples.quantized.sum(dim=1, keepdim=True))  # pulls upwards
    config = Reconstruct(iterations=60)
    assert not is_pair_safe(fit(unit, samples, config).codes["layer"])
    assert is_pair_safe(fit(replace(unit, pair_safe=frozenset({"layer"})), samples, config).codes["layer"])


def test_a_run_that_diverges_is_reported() -> None:
    unit = linear_unit(4, 2, 4, 0)
    samples = correlated(unit, 16, 0)
    samples = replace(samples, target=torch.full_like(samples.target, torch.nan))
    with pytest.raises(CalibrationError, match="unit: reconstruction diverged"):
        fit(unit, samples, Reconstruct(iterations=2))


def test_unit_error_counts_live_tokens_of_all_samples_alike() -> None:
    unit = linear_unit(3, 2, 8, 0)
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(1))
    live = torch.arange(4) < torch.tensor([1, 4, 2, 3, 1])[:, None]
    errors = [(unit.module(x[i, j]) - target[i, j]).square().sum() for i in range(5) for j in range(4) if live[i, j]]
    found = unit_error(unit, Samples(x, x, target, live), batch=2)
    assert found == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


def test_the_scale_keeps_its_value_and_divides_its_gradient() -> None:
    scale = torch.tensor([-0.5, 0.25], requires_grad=True)
    found = lsq_scale(scale, 24, 3)  # 12 values each: g = 1 / sqrt(12 * 3) = 1 / 6
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25]))
    found.sum().backward()
    torch.testing.assert_close(scale.grad, torch.tensor([-1 / 6, 1 / 6]))


def test_dropping_passes_the_stated_share_unquantized() -> None:
    affine = place_grid(torch.tensor(0.0), torch.tensor(1.0), IntegerGrid(2, symmetric=False))
    x = torch.rand(100, 100, generator=torch.Generator().manual_seed(0))
    y = DroppingQuantizer(affine, 0.7, torch.Generator().manual_seed(0))(x)
    snapped = UniformQuantizer(affine)(x)
    assert bool(((y == x) | (y == snapped)).all())
    assert (y == snapped).float().mean().item() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("share", [0.5, 0.1, 1 - 1e-6])
def test_random_masks_are_true_as_often_as_asked_wherever_a_value_lies_in_a_draw(share: float) -> None:
    mask = random_mask((401, 999), share, torch.Generator().manual_seed(0))  # not a multiple of four
    assert mask.shape == (401, 999)
    flat = mask.flatten()[: 4 * 100_000].float().reshape(-1, 4)  # [draw, value]
    spread = (share * (1 - share) / 100_000) ** 0.5
    torch.testing.assert_close(flat.mean(dim=0), torch.full((4,), share), rtol=0, atol=4 * spread + 2**-15)
    together = (flat[:, :1] * flat[:, 1:]).mean(dim=0)  # both true, as often as of two that know nothing of each other
    torch.testing.assert_close(together, torch.full((3,), share**2), rtol=0, atol=4 * spread + 2**-14)


def test_inputs_are_mixed_from_both_streams() -> None:
    # Quantized inputs of zero say nothing: without dropping, the penalty alone decides, for the nearest. The more the
    # float stream is let in, the more there is to learn from.
    unit = linear_unit(9, 1, 4, 4)
    plain = correlated(unit, 256, 4)
    silent = replace(plain, quantized=torch.zeros_like(plain.quantized))
    kept, dropped = (fit(unit, silent, replace(CONFIG, keep_quantized=p)).codes["layer"] for p in (1.0, 1e-6))
    assert torch.equal(kept, unit.grid_weight("layer").codes())
    assert error_of(unit, plain, dropped) < 0.5 * error_of(unit, plain, kept)


def test_the_authors_error_sums_over_dimension_1() -> None:
    y, target = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.zeros(1, 2, 2)  # [sample, token, channel]
    # Over tokens: 1 + 9 and 4 + 16; their mean 15. Over channels it would be 5 and 25: the same mean, but per token.
    assert error_over_dim1(y, target).item() == pytest.approx(15)
    longer = torch.cat([y, y], dim=1)  # twice the tokens weigh twice against the rounding term (Q20)
    assert error_over_dim1(longer, torch.zeros(1, 4, 2)).item() == pytest.approx(30)
    pooled = torch.tensor([[1.0, 2.0, 2.0]])  # [sample, channel]: one token, so a plain mean of squares
    assert error_over_dim1(pooled, torch.zeros(1, 3)).item() == pytest.approx(3)
    maps = torch.ones(2, 3, 4, 4)  # [sample, channel, height, width]: the sum over channels
    assert error_over_dim1(maps, torch.zeros(2, 3, 4, 4)).item() == pytest.approx(3)

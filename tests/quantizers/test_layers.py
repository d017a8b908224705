import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4c.quantizers.grids import AffineGrid, IntegerGrid, place_grid
from d4c.quantizers.layers import GridWeight, QuantConv2d, QuantEmbedding, QuantLinear, TokenQuantizer, UniformQuantizer


def grid_of(weight: Tensor, num_bits: int = 4, symmetric: bool = True) -> AffineGrid:
    """A min-max grid of each output channel, [out, 1, ..]."""
    rows = weight.detach().flatten(1)
    shape = (-1, *[1] * (weight.ndim - 1))
    return place_grid(rows.amin(1).reshape(shape), rows.amax(1).reshape(shape), IntegerGrid(num_bits, symmetric))


def snapped(x: Tensor, affine: AffineGrid) -> Tensor:
    """Quantize and dequantize value by value, in float64."""
    scales = affine.scale.expand_as(x).flatten().tolist()
    zeros = affine.zero_point.expand_as(x).flatten().tolist()
    values = []
    for value, s, z in zip(x.detach().flatten().tolist(), scales, zeros, strict=True):
        values.append((min(max(round(value / s) + z, affine.grid.qmin), affine.grid.qmax) - z) * s)
    return torch.tensor(values, dtype=torch.float64).reshape(x.shape)


def input_grid(num_bits: int) -> AffineGrid:
    return place_grid(torch.tensor(-1.3), torch.tensor(2.1), IntegerGrid(num_bits, symmetric=False))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_plain_arithmetic(num_bits: int, symmetric: bool, bias: bool, generator: torch.Generator) -> None:
    linear = nn.Linear(6, 5, bias=bias)
    affine, x = grid_of(linear.weight, num_bits, symmetric), torch.randn(2, 3, 6, generator=generator)
    quantized = QuantLinear(linear, affine, UniformQuantizer(input_grid(num_bits)))
    a, w = snapped(x, input_grid(num_bits)), snapped(linear.weight, affine)
    expected = torch.einsum("bti,oi->bto", a, w) + (linear.bias.detach() if linear.bias is not None else 0)
    torch.testing.assert_close(quantized(x), expected.float())


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_convolution_equals_plain_arithmetic(stride: int, padding: int, generator: torch.Generator) -> None:
    conv = nn.Conv2d(3, 4, 3, stride=stride, padding=padding)
    affine, x = grid_of(conv.weight), torch.randn(2, 3, 6, 6, generator=generator)
    quantized = QuantConv2d(conv, affine, UniformQuantizer(input_grid(8)))
    w = snapped(conv.weight, affine).flatten(1)  # [out, in * height * width]
    a = F.pad(snapped(x, input_grid(8)), [padding] * 4)  # zero is a code, so padding is exact
    side = (a.shape[-1] - 3) // stride + 1
    expected = torch.zeros(2, 4, side, side, dtype=torch.float64)
    for i in range(side):
        for j in range(side):
            patch = a[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3].flatten(1)
            expected[:, :, i, j] = patch @ w.T + conv.bias.detach()  # type: ignore[union-attr]
    torch.testing.assert_close(quantized(x), expected.float())


def test_embedding_equals_dequantized_rows() -> None:
    table = nn.Embedding(7, 5)
    with torch.no_grad():
        table.weight[3] = 0
    affine, ids = grid_of(table.weight, 8), torch.tensor([[3, 0], [6, 6]])
    quantized = QuantEmbedding(table, affine)
    torch.testing.assert_close(quantized(ids), snapped(table.weight, affine)[ids].float())
    assert affine.scale[3].item() == 1
    assert bool((quantized.weight.codes()[3] == 0).all())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
    ],
)
def test_other_than_plain_convolutions_are_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="plain convolution"):
        QuantConv2d(conv, grid_of(conv.weight), nn.Identity())


def test_a_token_quantizer_lets_no_token_see_another(generator: torch.Generator) -> None:
    x, quantizer = torch.randn(2, 3, 6, generator=generator), TokenQuantizer(IntegerGrid(4, symmetric=False))
    changed = x.clone()
    changed[0, 1] *= 100
    out, again = quantizer(x), quantizer(changed)
    rest = torch.ones(2, 3, dtype=torch.bool)
    rest[0, 1] = False
    assert torch.equal(out[rest], again[rest])
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    torch.testing.assert_close(out, snapped(x, place_grid(low, high, quantizer.grid)).float())


@pytest.mark.parametrize("num_bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_weight_on_its_grid_is_a_fixed_point(num_bits: int, symmetric: bool, generator: torch.Generator) -> None:
    weight = torch.randn(6, 50, generator=generator)
    first = GridWeight(weight, grid_of(weight, num_bits, symmetric))
    again = GridWeight(first.values, first.affine)
    assert torch.equal(again.values, first.values)
    assert again.values.data_ptr() == first.values.data_ptr()  # the same memory, of which a loaded model has one copy
    chosen = torch.randint(first.grid.qmin, first.grid.qmax + 1, (6, 50), generator=generator).float()
    first.set_codes(chosen)
    assert torch.equal(first.codes(), chosen)


@pytest.mark.parametrize("code", [0.5, -9.0, 8.0])
def test_codes_off_the_grid_are_refused(code: float) -> None:
    weight = GridWeight(torch.ones(1, 2), grid_of(torch.ones(1, 2)))
    with pytest.raises(ValueError, match="whole codes from -8 to 7"):
        weight.set_codes(torch.tensor([[0.0, code]]))


def test_a_weight_moved_off_its_grid_is_noticed() -> None:
    weight = GridWeight(torch.ones(1, 2), grid_of(torch.ones(1, 2)))
    weight.values += 0.01
    with pytest.raises(ValueError, match="does not lie on its grid"):
        weight.codes()

import pytest
import torch
from torch import Tensor

from d4c import calibrate
from d4c.images import ImageSet, clamp_valid
from d4c.models import Clip, sites_of, wrap
from d4c.models.folding import fold_batchnorm
from d4c.models.sites import TensorSite
from d4c.quantizers.grids import IntegerGrid, PerChannel, PerTensor, PerToken, TensorFormat
from d4c.quantizers.layers import QuantLayer, TokenQuantizer
from d4c.quantizers.ranges import Ranges
from d4c.quantizers.scheme import Scheme, resolve_scheme
from d4c.recipes import Calibrate, load_recipe

NOTHING = Scheme({}, {}, {}), Ranges({}, {}, {})
MINMAX = Calibrate(range="minmax")


@pytest.fixture(params=["tiny_clip", "tiny_resnet", "tiny_siglip"])
def clip(request: pytest.FixtureRequest) -> Clip:
    return request.getfixturevalue(request.param)


@pytest.fixture
def pictures(clip: Clip, pixels: Tensor) -> ImageSet:
    return ImageSet.unlabelled(clamp_valid(pixels, clip.preprocess), "p")  # what the pixels' own grid covers


def assert_close_rows(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """The largest |Δ| / |z| over rows."""
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) < tolerance


def sixteen_bits(clip: Clip, placement: str) -> Scheme:
    """Everything on grids as fine as the code allows; finer than recipes can say."""
    sites = sites_of(clip)
    fine = TensorFormat(IntegerGrid(16, symmetric=False), PerTensor())
    weights = dict.fromkeys(sites.layers, TensorFormat(IntegerGrid(16, symmetric=True), PerChannel(0)))
    if placement == "tensors":
        return Scheme(weights, dict.fromkeys(sites.tensors, fine), {})
    return Scheme(weights, dict.fromkeys(sites.attention_factors, fine), dict.fromkeys(sites.inputs, fine))


@pytest.mark.parametrize("folded", [True, False])
def test_a_scheme_that_names_nothing_changes_nothing(clip: Clip, folded: bool, pixels: Tensor, ids: Tensor) -> None:
    wrapped = wrap(fold_batchnorm(clip) if folded else clip, *NOTHING)
    assert_close_rows(wrapped.encode_image(pixels), clip.encode_image(pixels), 1e-5)
    assert_close_rows(wrapped.encode_text(ids), clip.encode_text(ids), 1e-5)
    assert (wrapped.quantized_weights(), wrapped.tensor_quantizers()) == ({}, {})


@pytest.mark.parametrize("placement", ["tensors", "inputs"])
def test_sixteen_bits_are_almost_float(clip: Clip, placement: str, pictures: ImageSet, ids: Tensor) -> None:
    folded = fold_batchnorm(clip)
    scheme = sixteen_bits(folded, placement)
    wrapped = wrap(folded, scheme, calibrate.run(folded, pictures, ids, scheme, MINMAX))
    assert_close_rows(wrapped.encode_image(pictures.pixels), clip.encode_image(pictures.pixels), 1e-3)
    assert_close_rows(wrapped.encode_text(ids), clip.encode_text(ids), 1e-3)
    assert not torch.equal(wrapped.encode_text(ids), clip.encode_text(ids))


def test_quantizers_stand_where_the_scheme_names_them_and_the_float_model_stays(
    clip: Clip, pictures: ImageSet, ids: Tensor
) -> None:
    folded = fold_batchnorm(clip)
    before = {name: tensor.clone() for name, tensor in folded.state_dict().items()}
    scheme = resolve_scheme(load_recipe("w4a8", []), sites_of(folded))
    ranges = calibrate.run(folded, pictures, ids, scheme, MINMAX)
    wrapped = wrap(folded, scheme, ranges)
    assert wrapped.quantized_weights().keys() == scheme.weights.keys()
    assert wrapped.tensor_quantizers().keys() == scheme.tensors.keys()
    for site, quantizer in wrapped.tensor_quantizers().items():
        assert torch.equal(quantizer.scale, ranges.tensors[site].scale)
    for layer, weight in wrapped.quantized_weights().items():
        steps = (weight.values - folded.get_parameter(f"{layer}.weight")).abs() / weight.scale
        clipped = (weight.codes() == weight.grid.qmax) | (weight.codes() <= -weight.grid.qmax)
        assert bool(((steps < 0.5001) | clipped).all())  # rounded to nearest
    assert not any(isinstance(m, QuantLayer) for m in folded.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in folded.state_dict().items())


def test_every_layer_reads_a_site_that_stands_before_it(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    folded = fold_batchnorm(clip)
    sites, seen = sites_of(folded), {}
    for name in (*sites.layers, *sites.tensors):
        folded.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: seen.__setitem__(name, (x[0], y)))
    folded(pixels, ids)
    assert set(sites.inputs) == set(sites.layers) - sites.embeddings
    assert set(sites.tensors) == {n for n, m in folded.named_modules() if isinstance(m, TensorSite)}
    blocks = sum(name.endswith("attention") for name, _ in folded.named_modules()) + hasattr(folded.image, "pool")
    assert len(sites.attention_factors) == 4 * blocks  # q, k, v and the probabilities
    assert all(site.endswith(("_out", "probabilities")) for site in sites.attention_factors)
    for layer, site in sites.inputs.items():
        assert torch.equal(seen[layer][0], seen[site][1])


def test_dynamic_grids_need_no_range(tiny_clip: Clip, ids: Tensor) -> None:
    site = "text.blocks.0.mlp.hidden"
    scheme = Scheme({}, {site: TensorFormat(IntegerGrid(8, symmetric=False), PerToken())}, {})
    wrapped = wrap(tiny_clip, scheme, NOTHING[1])
    assert isinstance(wrapped.get_submodule(site), TokenQuantizer)
    assert_close_rows(wrapped.encode_text(ids), tiny_clip.encode_text(ids), 0.05)


@pytest.mark.parametrize(
    ("kind", "site"),
    [
        ("tensors", "text.pooled"),  # not in the ranges
        ("weights", "text.projection"),
        ("tensors", "text.pooledd"),  # not in the model
        ("tensors", "text.blocks.9.mlp.input"),
        ("weights", "text.blocks.9.mlp.fc1"),
        ("inputs", "text.blocks.9.mlp.fc1"),
    ],
)
def test_a_site_that_the_ranges_or_the_model_lack_is_an_error(tiny_clip: Clip, kind: str, site: str) -> None:
    named = {site: TensorFormat(IntegerGrid(8, symmetric=True), PerTensor())}
    with pytest.raises(KeyError, match=site):
        wrap(tiny_clip, Scheme(**{"weights": {}, "tensors": {}, "inputs": {}, kind: named}), NOTHING[1])

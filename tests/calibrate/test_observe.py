import copy

import pytest
import torch
from torch import Tensor, nn

from d4c import calibrate
from d4c.errors import CalibrationError
from d4c.images import ImageSet
from d4c.inputs.tokenizer import Tokenizer
from d4c.models import Clip, sites_of, wrap
from d4c.models.folding import fold_batchnorm
from d4c.models.sites import TensorSite
from d4c.quantizers.functional import fake_quantize
from d4c.quantizers.grids import AffineGrid, IntegerGrid, place_grid
from d4c.quantizers.pair_safe import is_pair_safe, pair_safe_span
from d4c.quantizers.range_search import lp_range, lp_range_brute_force, minmax_range
from d4c.quantizers.scheme import Scheme, resolve_scheme
from d4c.recipes import Calibrate, Recipe, Rule, load_recipe

MINMAX = Calibrate(range="minmax")


def images(num: int = 40, seed: int = 0) -> ImageSet:
    """More than are run at once."""
    return ImageSet.unlabelled(torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(seed)), "noise")


def texts(tokenizer: Tokenizer, num: int = 40) -> Tensor:
    return torch.from_numpy(tokenizer([f"{'a very '[: 7 * (i % 4)]}old photo, number {i * i}" for i in range(num)]))


def change_dead_tokens(ids: Tensor) -> Tensor:
    """Other tokens wherever a row has passed its end."""
    after_end = torch.arange(ids.shape[1]) > ids.argmax(dim=-1, keepdim=True)
    return torch.where(after_end, torch.arange(1000, 1000 + ids.shape[1]), ids)


def scheme_of(clip: Clip, recipe: str | Recipe) -> Scheme:
    return resolve_scheme(load_recipe(recipe, []) if isinstance(recipe, str) else recipe, sites_of(clip))


def seen_at_once(clip: Clip, names: list[str], pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """What goes into the named modules: all images in one batch, every text alone and cut behind its end token."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        clip.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
        for name in names
    ]
    clip.encode_image(pixels)
    for row in ids:
        clip.encode_text(row[None, : int(row.argmax()) + 1])
    for handle in handles:
        handle.remove()
    return {name: torch.cat([x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x.reshape(-1) for x in xs])
            for name, xs in seen.items()}  # fmt: skip


def assert_same_grid(found: AffineGrid, expected: AffineGrid) -> None:
    """Up to rounding of float32 sums, which may tip a zero point."""
    torch.testing.assert_close(found.scale, expected.scale.reshape(found.scale.shape), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.zero_point, expected.zero_point.reshape(found.scale.shape), rtol=0, atol=1)


@pytest.fixture(params=["tiny_clip", "tiny_resnet"])
def clip(request: pytest.FixtureRequest) -> Clip:
    return fold_batchnorm(request.getfixturevalue(request.param))


def test_minmax_ranges_are_those_of_all_samples_at_once(clip: Clip) -> None:
    scheme = scheme_of(clip, Recipe("r", attention="rules", rules=(Rule("*", activation_bits=6),)))
    pictures, ids = images(), texts(clip.tokenizer)
    ranges = calibrate.run(clip, pictures, ids, scheme, MINMAX)
    seen = seen_at_once(clip, list(scheme.tensors), pictures.pixels, ids)
    assert set(ranges.tensors) == set(seen) == {n for n, m in clip.named_modules() if isinstance(m, TensorSite)}
    grid = IntegerGrid(6, symmetric=False)
    for site in set(seen) - {"image.pixels"}:
        assert_same_grid(ranges.tensors[site], place_grid(seen[site].min(), seen[site].max(), grid))
    # Black and white: the lowest and the highest of (0 - mean) / std and (1 - mean) / std over channels.
    pixels = ranges.tensors["image.pixels"]
    torch.testing.assert_close(pixels.scale, torch.tensor((2.14590 + 1.79226) / 63), rtol=1e-5, atol=0)
    assert pixels.zero_point.item() == round(1.79226 / (2.14590 + 1.79226) * 63)


def test_lp_ranges_are_those_of_all_samples_at_once(clip: Clip) -> None:
    scheme = scheme_of(clip, "w4a8")
    pictures, ids = images(), texts(clip.tokenizer)
    ranges = calibrate.run(clip, pictures, ids, scheme, Calibrate())
    seen = seen_at_once(clip, list(scheme.tensors), pictures.pixels, ids)
    for site in set(seen) - {"image.pixels"}:
        x = seen[site].reshape(1, -1)
        expected = lp_range(x, scheme.tensors[site].grid)
        errors = [
            (fake_quantize(x, a.scale, a.zero_point, a.grid) - x).abs().pow(2.4).mean()
            for a in (ranges.tensors[site], expected)
        ]
        assert errors[0] <= errors[1] * 1.001, site


@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_of_inputs_per_channel_and_per_token(clip: Clip, symmetric: bool) -> None:
    rules = (
        Rule("*", weight_bits=8, activation_bits=8),
        Rule("*.blocks.*.attention.[qkv]", activation_granularity="channel"),
        Rule("*.mlp.fc2", activation_granularity="token"),
    )
    recipe = Recipe("r", placement="inputs", activation_symmetric=symmetric, rules=rules)
    scheme, pictures, ids = scheme_of(clip, recipe), images(), texts(clip.tokenizer)
    ranges = calibrate.run(clip, pictures, ids, scheme, MINMAX)
    seen = seen_at_once(clip, list(scheme.inputs), pictures.pixels, ids)
    assert set(ranges.inputs) == {layer for layer in scheme.inputs if not layer.endswith("fc2")}
    for layer, found in ranges.inputs.items():
        per_channel = ".blocks." in layer and layer.endswith((".q", ".k", ".v"))
        x = seen[layer] if per_channel else seen[layer].reshape(-1)  # [token, channel] or [value]
        assert found.scale.shape == x.shape[1:]
        assert_same_grid(found, place_grid(x.amin(0), x.amax(0), IntegerGrid(8, symmetric)))


def test_what_stands_behind_the_end_token_changes_nothing(clip: Clip) -> None:
    ids = texts(clip.tokenizer)
    for recipe in ("w4a8", "w4a4"):
        scheme = scheme_of(clip, recipe)
        first, second = (
            calibrate.run(clip, images(2), i, scheme, Calibrate()).to_tensors() for i in (ids, change_dead_tokens(ids))
        )
        assert not torch.equal(ids, change_dead_tokens(ids))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_of_8_bits_cover_all_and_fewer_bits_are_searched(clip: Clip) -> None:
    scheme = scheme_of(clip, Recipe("r", deployable=True, rules=(
        Rule("*", weight_bits=8, activation_bits=8), Rule("*.fc1", weight_bits=4), Rule("*.conv3", weight_bits=4),
    )))  # fmt: skip
    ranges = calibrate.run(clip, images(4), texts(clip.tokenizer, 4), scheme, Calibrate())
    for layer, found in ranges.weights.items():
        weight = clip.get_parameter(f"{layer}.weight")
        rows = weight.flatten(1)
        if scheme.weights[layer].grid.num_bits == 4:
            expected = lp_range_brute_force(rows, IntegerGrid(4, symmetric=True)).scale.flatten()
        elif layer == "text.token_embedding":
            expected = rows.abs().amax(1) / 127
        else:
            expected = pair_safe_span(weight) / 127
        assert found.scale.shape == (len(rows), *[1] * (weight.ndim - 1))
        torch.testing.assert_close(found.scale.flatten(), expected)
    wrapped = wrap(clip, scheme, ranges)
    codes = {n: w.codes() for n, w in wrapped.quantized_weights().items() if scheme.weights[n].pair_safe}
    assert codes
    assert all(is_pair_safe(c) for c in codes.values())


def test_a_large_bias_widens_its_own_weight_scale(tiny_clip: Clip) -> None:
    clip, layer = copy.deepcopy(tiny_clip), "text.blocks.1.mlp.fc2"  # nothing is calibrated behind it but the pooling
    linear = clip.get_submodule(layer)
    assert isinstance(linear, nn.Linear)
    linear.bias.data[5] = -3e8
    scheme = scheme_of(clip, "w8a8")
    plain = calibrate.run(tiny_clip, images(2), texts(clip.tokenizer, 4), scheme, MINMAX).weights[layer].scale
    ranges = calibrate.run(clip, images(2), texts(clip.tokenizer, 4), scheme, MINMAX)
    found, s_a = ranges.weights[layer].scale, ranges.tensors["text.blocks.1.mlp.hidden"].scale
    torch.testing.assert_close(found[5, 0], 3e8 / (s_a * 2**30))
    assert found[5] > plain[5]
    others = torch.arange(len(found)) != 5
    assert torch.equal(found[others], plain[others])
    assert bool(((linear.bias / (found[:, 0] * s_a)).abs() <= 2**30 * 1.001).all())


def test_dead_channels_zero_weights_and_one_token_are_survived(tiny_resnet: Clip) -> None:
    clip = copy.deepcopy(fold_batchnorm(tiny_resnet))  # folding shares what it does not fold
    for layer in ("image.layer2.0.conv1", "text.blocks.0.attention.q"):
        clip.get_parameter(f"{layer}.weight").data[1] = 0
        clip.get_parameter(f"{layer}.bias").data[1] = 0
    clip.get_parameter("image.layer1.0.conv1.bias").data.fill_(-1e3)  # nothing passes its ReLU
    scheme, one = scheme_of(clip, "w4a8"), torch.tensor([[49407] + [0] * 76])  # an end token and nothing else
    ranges = calibrate.run(clip, images(1), one, scheme, Calibrate())
    assert ranges.tensors["image.layer1.0.conv1_out"].scale.item() == 1
    assert ranges.tensors["image.layer1.0.conv1_out"].zero_point.item() == 0
    wrapped = wrap(clip, scheme, ranges)
    for layer in ("image.layer2.0.conv1", "text.blocks.0.attention.q"):
        assert ranges.weights[layer].scale[1].item() == 1
        assert bool((wrapped.quantized_weights()[layer].codes()[1] == 0).all())
    assert bool(wrapped.encode_image(images(2).pixels).isfinite().all())
    assert bool(wrapped.encode_text(one).isfinite().all())


def test_constant_pictures_are_survived(clip: Clip) -> None:
    scheme, flat = scheme_of(clip, "w8a8"), ImageSet.unlabelled(torch.zeros(2, 3, 32, 32), "flat")
    ranges = calibrate.run(clip, flat, texts(clip.tokenizer, 2), scheme, Calibrate())
    wrapped = wrap(clip, scheme, ranges)
    reference = clip.encode_image(flat.pixels)
    assert (wrapped.encode_image(flat.pixels) - reference).norm() < 0.1 * reference.norm()


def test_the_model_is_left_as_it_was(clip: Clip) -> None:
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    scheme = scheme_of(clip, "w8a8")
    first, second = (
        calibrate.run(clip, images(3), texts(clip.tokenizer, 3), scheme, Calibrate()).to_tensors() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())
    assert not any(module._forward_pre_hooks for module in clip.modules())


def test_activations_that_are_not_finite_are_reported_with_their_site(tiny_clip: Clip) -> None:
    clip = copy.deepcopy(tiny_clip)
    clip.get_parameter("image.blocks.1.mlp.fc1.bias").data[0] = torch.inf
    with pytest.raises(CalibrationError, match=r"image\.blocks\.1\.mlp\.hidden"):
        calibrate.run(clip, images(2), texts(clip.tokenizer, 2), scheme_of(clip, "w8a8"), Calibrate())


def test_weight_only_recipes_need_no_ranges_of_tensors(tiny_clip: Clip) -> None:
    ranges = calibrate.run(tiny_clip, images(1), texts(tiny_clip.tokenizer, 1), scheme_of(tiny_clip, "w4"), Calibrate())
    assert (ranges.tensors, ranges.inputs) == ({}, {})
    assert ranges.weights


def test_only_the_first_samples_are_seen(tiny_clip: Clip) -> None:
    scheme, ids = scheme_of(tiny_clip, "w8a8"), texts(tiny_clip.tokenizer)
    few = calibrate.run(tiny_clip, images(), ids, scheme, Calibrate(range="minmax", samples=8))
    first = ImageSet.unlabelled(images().pixels[:8], "first")
    for site, grid in calibrate.run(tiny_clip, first, ids[:8], scheme, MINMAX).tensors.items():
        assert_same_grid(few.tensors[site], grid)
    everything = calibrate.run(tiny_clip, images(), ids, scheme, MINMAX).tensors
    assert any(not torch.equal(few.tensors[site].scale, everything[site].scale) for site in everything)


def test_padding_is_seen_where_it_counts(tiny_clip: Clip) -> None:
    scheme, ids = scheme_of(tiny_clip, "w8a8"), texts(tiny_clip.tokenizer, 8)
    ids = torch.nn.functional.pad(ids, (0, tiny_clip.config.text.context_length - ids.shape[1]))
    found = [
        calibrate.run(tiny_clip, images(4), given, scheme, Calibrate(range="minmax", padding=padding), towers=["text"])
        for padding in (False, True)
        for given in (ids, change_dead_tokens(ids))
    ]
    site = "text.blocks.0.mlp.hidden"
    assert torch.equal(found[0].tensors[site].scale, found[1].tensors[site].scale)
    assert not torch.equal(found[2].tensors[site].scale, found[3].tensors[site].scale)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_is_calibrated_by_itself(tower: str, tiny_clip: Clip) -> None:
    scheme, ids = scheme_of(tiny_clip, "w4a8"), texts(tiny_clip.tokenizer, 8)
    both = calibrate.run(tiny_clip, images(4), ids, scheme, MINMAX)
    one = calibrate.run(tiny_clip, images(4), ids, scheme, MINMAX, towers=[tower])  # type: ignore[list-item]
    for kind in ("weights", "tensors"):
        sites = [site for site in getattr(both, kind) if site.startswith(tower)]
        assert list(getattr(one, kind)) == sites
        assert all(torch.equal(getattr(one, kind)[s].scale, getattr(both, kind)[s].scale) for s in sites)


@pytest.mark.parametrize(("weight_range", "num_bits", "searched"), [
    ("auto", 8, False), ("auto", 4, True), ("lp", 8, True), ("minmax", 4, False)
])  # fmt: skip
def test_weights_are_searched_as_the_recipe_says(
    weight_range: str, num_bits: int, searched: bool, tiny_clip: Clip
) -> None:
    recipe = Recipe("r", weight_symmetric=False, rules=(Rule("image.projection", weight_bits=num_bits),))
    config = Calibrate(range="lp", weight_range=weight_range)  # type: ignore[arg-type]
    ranges = calibrate.run(tiny_clip, images(2), texts(tiny_clip.tokenizer, 2), scheme_of(tiny_clip, recipe), config)
    rows = tiny_clip.get_submodule("image.projection").weight.detach()
    expected = (lp_range if searched else minmax_range)(rows, IntegerGrid(num_bits, symmetric=False))
    torch.testing.assert_close(ranges.weights["image.projection"].scale, expected.scale)


def test_the_papers_ranges_are_those_of_brute_force(tiny_clip: Clip) -> None:
    # A histogram's shortlist, scored again on every value, loses at most 1 % to all 25,600 candidates.
    ids = texts(tiny_clip.tokenizer, 8)
    recipe = load_recipe("paper-w4a8")
    scheme = scheme_of(tiny_clip, recipe)
    ranges = calibrate.run(tiny_clip, images(8), ids, scheme, recipe.calibrate, towers=["image"])
    layer, site = "image.blocks.0.attention.out", "image.blocks.0.attention.context"  # per tensor
    values = seen_at_once(tiny_clip, [site], images(8).pixels, ids)[site].reshape(1, -1)
    grid, found = IntegerGrid(8, symmetric=False), ranges.inputs[layer]
    best = lp_range_brute_force(values, grid)
    errors = [
        (values - fake_quantize(values, a.scale, a.zero_point, grid)).abs().pow(2.4).mean() for a in (found, best)
    ]
    assert errors[0] <= 1.01 * errors[1]


@pytest.mark.parametrize(("model", "recipe"), [("tiny_clip", "w4a4"), ("tiny_clip", "w6a6"), ("tiny_resnet", "w6a6")])
def test_ranges_by_output_error_cost_the_readers_less(model: str, recipe: str, request: pytest.FixtureRequest) -> None:
    clip: Clip = fold_batchnorm(request.getfixturevalue(model))
    ids, scheme = texts(clip.tokenizer, 8), scheme_of(clip, recipe)
    searched, plain = (
        calibrate.run(clip, images(8), ids, scheme, Calibrate(range=kind))  # type: ignore[arg-type]
        for kind in ("output_error", "lp")
    )
    reads, ratios = sites_of(clip).inputs, []
    for layer in (layer for layer in reads if layer in scheme.weights):
        module = clip.get_submodule(layer)
        seen: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        clip.encode_image(images(8).pixels)
        clip.encode_text(ids[:1])
        handle.remove()
        losses = []
        for ranges in (searched, plain):
            affine = ranges.tensors.get(reads[layer]) or ranges.inputs[layer]
            noisy = fake_quantize(seen[0], affine.scale, affine.zero_point, affine.grid)
            losses.append(float((module(noisy) - module(seen[0])).detach().square().sum()))
        ratios.append(losses[0] / losses[1])
    assert sum(ratios) / len(ratios) < 1
    assert max(ratios) < 1.5


def test_a_tensor_that_no_layer_reads_is_judged_by_itself(tiny_resnet: Clip) -> None:
    clip = fold_batchnorm(tiny_resnet)
    site = "image.layer1.0.conv3_out"  # it is added to the shortcut
    ranges = calibrate.run(
        clip, images(4), texts(clip.tokenizer, 4), scheme_of(clip, "w6a6"), Calibrate(range="output_error")
    )
    values = seen_at_once(clip, [site], images(4).pixels, texts(clip.tokenizer, 1))[site]
    grid, found = IntegerGrid(6, symmetric=False), ranges.tensors[site]
    errors = [
        float((values - fake_quantize(values, a.scale, a.zero_point, grid)).square().mean())
        for a in (found, place_grid(values.min(), values.max(), grid))
    ]
    assert errors[0] <= errors[1]

import copy

import pytest
import torch
from torch import Tensor

from d4c import calibrate
from d4c.images import ImageSet
from d4c.models import Clip, sites_of
from d4c.models.folding import fold_batchnorm
from d4c.models.parts import captured_inputs
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import Calibrate, load_recipe

SITES = ("attention.input", "mlp.input")


def balance_layernorms(clip: Clip, images: ImageSet, ids: Tensor, *exponents: float) -> Clip:
    scheme = resolve_scheme(load_recipe("w4a4"), sites_of(clip))
    return calibrate.fold(clip, images, ids, scheme, Calibrate(layernorm_folds=exponents))


def channel_ranges(clip: Clip, tower: str, pixels: Tensor, ids: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Smallest and largest value of every channel of every LayerNorm output, [channel] each; live tokens alone."""
    names = [f"{tower}.blocks.{i}.{site}" for i in range(2) for site in SITES]
    with captured_inputs(clip, names) as seen:
        if tower == "image":
            clip.encode_image(pixels)
        else:
            for row in ids:
                clip.encode_text(row[None, : int(row.argmax()) + 1])
    values = {name: torch.cat([x.flatten(0, 1) for x in xs]) for name, xs in seen.items()}
    return {name: (x.amin(0), x.amax(0)) for name, x in values.items()}


@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet"])
@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_float_function_stays(
    model: str, exponent: float, request: pytest.FixtureRequest, pixels: Tensor, ids: Tensor
) -> None:
    clip = fold_batchnorm(request.getfixturevalue(model))
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    balanced = balance_layernorms(clip, ImageSet.unlabelled(pixels, "p"), ids, exponent)
    other = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    for old, new in (
        (clip.encode_image(other), balanced.encode_image(other)),
        (clip.encode_text(ids), balanced.encode_text(ids)),
    ):
        assert ((new - old).norm(dim=1) / old.norm(dim=1)).max() < 1e-5
    assert all(torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0])
def test_channels_are_centred_and_their_ranges_drawn_together(
    tiny_clip: Clip, tower: str, exponent: float, pixels: Tensor, ids: Tensor
) -> None:
    balanced = balance_layernorms(tiny_clip, ImageSet.unlabelled(pixels, "p"), ids, exponent)
    before = channel_ranges(tiny_clip, tower, pixels, ids)
    for site, (low, high) in channel_ranges(balanced, tower, pixels, ids).items():
        old = before[site][1] - before[site][0]
        torch.testing.assert_close(high, -low, rtol=1e-3, atol=1e-4)
        # range^(1 - e), up to the factor that gives r a geometric mean of 1
        expected = old ** (1 - exponent) * (exponent * old.log().mean()).exp()
        torch.testing.assert_close(high - low, expected, rtol=1e-3, atol=0)


def test_a_constant_channel_does_no_harm(tiny_clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    clip = copy.deepcopy(tiny_clip)
    for tower in ("image", "text"):
        clip.get_parameter(f"{tower}.blocks.1.norm1.weight").data[2] = 0
    balanced = balance_layernorms(clip, ImageSet.unlabelled(pixels, "p"), ids, 1.0)
    assert ((balanced.encode_image(pixels) - clip.encode_image(pixels)).abs()).max() < 1e-4
    assert ((balanced.encode_text(ids) - clip.encode_text(ids)).abs()).max() < 1e-4


def test_what_stands_behind_the_end_token_changes_nothing(tiny_clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    after_end = torch.arange(ids.shape[1]) > ids.argmax(dim=-1, keepdim=True)
    pictures = ImageSet.unlabelled(pixels, "p")
    first, second = (balance_layernorms(tiny_clip, pictures, i, 0.5).state_dict() for i in (ids, ids + 7 * after_end))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_each_layernorm_takes_the_exponent_that_costs_its_readers_least(tiny_clip: Clip, ids: Tensor) -> None:
    clip = copy.deepcopy(tiny_clip)
    spread = torch.linspace(-2, 2, clip.image.config.width).exp()  # channels of very different size
    norm, readers = clip.image.blocks[0].norm1, clip.image.blocks[0].attention
    norm.weight.data *= spread
    for linear in (readers.q, readers.k, readers.v):
        linear.weight.data /= spread  # which the weights undo, so that it can be undone
    pictures = ImageSet.unlabelled(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "p")
    chosen = balance_layernorms(clip, pictures, ids, 0.0, 0.5, 1.0)
    fixed = {e: balance_layernorms(clip, pictures, ids, e) for e in (0.5, 1.0)}
    site = chosen.image.blocks[0].norm1.weight
    assert not torch.equal(site, norm.weight)
    assert any(torch.equal(site, other.image.blocks[0].norm1.weight) for other in fixed.values())
    same = [
        torch.equal(dict(chosen.named_modules())[name].weight, module.weight)
        for name, module in clip.named_modules()
        if name.endswith(("norm1", "norm2"))
    ]
    assert not all(same)


@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet", "tiny_siglip"])
def test_centred_attention_computes_the_same_with_keys_and_values_about_zero(
    model: str, request: pytest.FixtureRequest, pixels: Tensor, ids: Tensor
) -> None:
    clip = fold_batchnorm(request.getfixturevalue(model))
    scheme = resolve_scheme(load_recipe("w8a8"), sites_of(clip))
    pictures = ImageSet.unlabelled(pixels, "p")
    centred = calibrate.fold(clip, pictures, ids, scheme, Calibrate(centre_attention=True))
    for old, new in (
        (clip.encode_image(pixels), centred.encode_image(pixels)),
        (clip.encode_text(ids), centred.encode_text(ids)),
    ):
        assert ((new - old).norm(dim=1) / old.norm(dim=1)).max() < 1e-5
    names = [
        name for name, _ in centred.named_modules() if name.startswith("image.") and name.endswith((".k_out", ".v_out"))
    ]
    assert names
    with captured_inputs(centred, names) as seen:
        centred.encode_image(pixels)
    for name in names:
        values = torch.cat(seen[name]).flatten(0, -2)
        torch.testing.assert_close(values.amax(dim=0), -values.amin(dim=0), rtol=1e-3, atol=1e-4)


def test_what_is_not_asked_for_is_not_done(tiny_clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    scheme = resolve_scheme(load_recipe("w8a8"), sites_of(tiny_clip))
    assert calibrate.fold(tiny_clip, ImageSet.unlabelled(pixels, "p"), ids, scheme, Calibrate()) is tiny_clip

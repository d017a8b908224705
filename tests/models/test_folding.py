import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from d4c.models import Clip, load
from d4c.models.clip import build_towers
from d4c.models.folding import fold_batchnorm, fold_layernorm
from d4c.models.parts import captured_inputs
from d4c.models.sharing import replace_parameter
from models.oracle import RESNET, inputs_for, open_clip_model, parity_errors, row_error, write_folder

BLOCKS = [f"{tower}.blocks.{i}" for tower in ("image", "text") for i in (0, 1)]
SITES = [f"{block}.{part}.input" for block in BLOCKS for part in ("attention", "mlp")]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """Stages of two, one, one and two bottlenecks: with and without a convolution in the shortcut."""
    folder = write_folder(tmp_path_factory.mktemp("resnet"), RESNET, open_clip_model(RESNET).state_dict())
    return load(f"local-dir:{folder}")


def random_fold(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Shifts and ratios for every LayerNorm that can be folded."""
    generator = torch.Generator().manual_seed(seed)
    shifts = {site: torch.randn(32, generator=generator) for site in SITES}
    return shifts, {site: torch.randn(32, generator=generator).exp() for site in SITES}


def state_of(clip: Clip) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in clip.state_dict().items()}


def assert_same_state(clip: Clip, state: dict[str, Tensor]) -> None:
    assert clip.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in clip.state_dict().items())


def test_a_batchnorm_is_folded_as_by_hand(resnet: Clip) -> None:
    clip = copy.deepcopy(resnet)
    stem = clip.image.stem
    nn.init.constant_(stem.conv1.weight, 3.0)
    # 6 (y - 1) / sqrt(4 + 0) + 5 of y = 3 x is 9 x + 2
    for name, value in (("weight", 6.0), ("bias", 5.0), ("running_mean", 1.0), ("running_var", 4.0)):
        nn.init.constant_(getattr(stem.bn1, name), value)
    stem.bn1.eps = 0.0
    folded = fold_batchnorm(clip).image.stem
    assert torch.equal(folded.conv1.weight, torch.full((4, 3, 3, 3), 9.0))
    assert torch.equal(folded.conv1.bias, torch.full((4,), 2.0))


def test_folding_batchnorms_leaves_embeddings_as_they_were(resnet: Clip) -> None:
    folded = fold_batchnorm(resnet)
    pixels, ids = inputs_for(resnet)
    assert row_error(folded.encode_image(pixels), resnet.encode_image(pixels)) < 1e-5
    assert torch.equal(folded.encode_text(ids), resnet.encode_text(ids))
    assert max(parity_errors(folded, open_clip_model(RESNET))) < 1e-5
    assert folded.fingerprint == resnet.fingerprint  # of the weights it came from


def test_no_batchnorm_is_left_and_the_configuration_says_so(resnet: Clip) -> None:
    folded = fold_batchnorm(resnet)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in resnet.modules()) == 3 + 6 * 3 + 4
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert (resnet.config.image.batch_norm, folded.config.image.batch_norm) == (True, False)  # type: ignore[union-attr]
    assert folded.image.config == folded.config.image
    rebuilt = build_towers(folded.config)[0].state_dict()
    assert {n: t.shape for n, t in rebuilt.items()} == {n: t.shape for n, t in folded.image.state_dict().items()}


def test_folding_twice_is_folding_once(resnet: Clip) -> None:
    once = fold_batchnorm(resnet)
    assert_same_state(fold_batchnorm(once), state_of(once))


def test_a_model_without_batchnorm_comes_back_as_a_copy(tiny_clip: Clip) -> None:
    folded = fold_batchnorm(tiny_clip)
    assert folded is not tiny_clip
    assert folded.config == tiny_clip.config
    assert_same_state(folded, state_of(tiny_clip))


def fold_text_norms(clip: Clip) -> Clip:
    shifts, ratios = ({site: values[site] for site in SITES[4:]} for values in random_fold())
    return fold_layernorm(clip, shifts, ratios)


@pytest.mark.parametrize("fold", [fold_batchnorm, fold_text_norms])
@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet"])
def test_folding_does_not_touch_its_input(
    model: str, fold: Callable[[Clip], Clip], request: pytest.FixtureRequest
) -> None:
    clip = request.getfixturevalue(model)
    before, config = state_of(clip), clip.config
    folded = fold(clip)
    assert_same_state(clip, before)
    own = {id(tensor) for tensor in (*clip.parameters(), *clip.buffers())}
    for name, tensor in folded.named_parameters():
        assert (id(tensor) in own) == (name in before and torch.equal(tensor, before[name]))  # shared if unchanged
        parent, _, leaf = name.rpartition(".")
        replace_parameter(folded.get_submodule(parent), leaf, torch.zeros_like(tensor))
    assert_same_state(clip, before)
    assert (clip.config, clip.image.config) == (config, config.image)


def test_a_layernorm_is_folded_as_by_hand(tiny_clip: Clip) -> None:
    clip = copy.deepcopy(tiny_clip)
    block, site = clip.image.blocks[0], "image.blocks.0.mlp.input"
    nn.init.constant_(block.norm2.weight, 2.0)
    nn.init.constant_(block.norm2.bias, 3.0)
    nn.init.constant_(block.mlp.fc1.weight, 0.5)
    nn.init.constant_(block.mlp.fc1.bias, 7.0)
    folded = fold_layernorm(clip, {site: torch.full((32,), 1.0)}, {site: torch.full((32,), 4.0)}).image.blocks[0]
    assert torch.equal(folded.norm2.weight, torch.full((32,), 0.5))  # 2 / 4
    assert torch.equal(folded.norm2.bias, torch.full((32,), 0.5))  # (3 - 1) / 4
    assert torch.equal(folded.mlp.fc1.weight, torch.full((128, 32), 2.0))  # 0.5 * 4
    assert torch.equal(folded.mlp.fc1.bias, torch.full((128,), 23.0))  # 7 + 32 * 0.5 * 1


@pytest.mark.parametrize("given", ["both", "shifts", "ratios"])
def test_folding_layernorms_leaves_embeddings_as_they_were(
    given: str, tiny_clip: Clip, pixels: Tensor, ids: Tensor
) -> None:
    shifts, ratios = random_fold()
    folded = fold_layernorm(tiny_clip, shifts if given != "ratios" else {}, ratios if given != "shifts" else {})
    assert row_error(folded.encode_image(pixels), tiny_clip.encode_image(pixels)) < 1e-5
    assert row_error(folded.encode_text(ids), tiny_clip.encode_text(ids)) < 1e-5
    assert not torch.equal(folded.image.blocks[0].norm1.bias, tiny_clip.image.blocks[0].norm1.bias)


def test_linears_read_shifted_and_rescaled_channels(tiny_clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    shifts, ratios = random_fold()
    folded = fold_layernorm(tiny_clip, shifts, ratios)
    with captured_inputs(tiny_clip, SITES) as before, captured_inputs(folded, SITES) as after:
        tiny_clip(pixels, ids)
        folded(pixels, ids)
    for site in SITES:
        expected = (before[site][0] - shifts[site]) / ratios[site]
        torch.testing.assert_close(after[site][0], expected, rtol=1e-4, atol=1e-4)


def test_only_named_layernorms_change(tiny_clip: Clip) -> None:
    shifts, ratios = random_fold()
    folded = fold_layernorm(tiny_clip, {SITES[0]: shifts[SITES[0]]}, {SITES[7]: ratios[SITES[7]]})
    changed = {n for n, t in folded.state_dict().items() if not torch.equal(t, tiny_clip.state_dict()[n])}
    first = {"image.blocks.0.norm1.bias", *(f"image.blocks.0.attention.{n}.bias" for n in "qkv")}  # shifted
    last = {f"text.blocks.1.{n}" for n in ("norm2.weight", "norm2.bias", "mlp.fc1.weight")}  # rescaled
    assert changed == first | last
    assert_same_state(fold_layernorm(tiny_clip, {}, {}), state_of(tiny_clip))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ratio_that_is_not_positive_and_finite_is_an_error(value: float, tiny_clip: Clip) -> None:
    before, ratio = state_of(tiny_clip), torch.ones(32)
    ratio[5] = value
    with pytest.raises(ValueError, match="need ratios > 0"):
        fold_layernorm(tiny_clip, {}, {SITES[2]: ratio})
    assert_same_state(tiny_clip, before)


@pytest.mark.parametrize(
    "site",
    ["image.blocks.0.attention.context", "image.blocks.9.mlp.input", "image.pixels", "text.blocks.0.norm1", "blocks.0"],
)
@pytest.mark.parametrize("kind", ["shifts", "ratios"])
def test_a_site_that_no_layernorm_feeds_is_an_error(site: str, kind: str, tiny_clip: Clip) -> None:
    given = {"shifts": {}, "ratios": {}, kind: {site: torch.ones(32), SITES[0]: torch.ones(32)}}
    with pytest.raises(ValueError, match=f"not the input of an attention or an MLP: {site}"):
        fold_layernorm(tiny_clip, **given)


def test_a_resnet_has_layernorms_in_its_text_tower_only(tiny_resnet: Clip, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"image\.blocks\.0\.attention\.input"):
        fold_layernorm(tiny_resnet, *random_fold())
    assert row_error(fold_text_norms(tiny_resnet).encode_text(ids), tiny_resnet.encode_text(ids)) < 1e-5

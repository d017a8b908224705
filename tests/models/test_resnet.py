from collections.abc import Callable

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from open_clip.modified_resnet import Bottleneck as TheirBottleneck
from torch import Tensor, nn

from d4c.models import Clip
from d4c.models.resnet import AttentionPool, Bottleneck, Stem
from models.oracle import RESNET, open_clip_model


def randomized(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for name, tensor in module.state_dict().items():
        draw = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + draw.abs())
        elif tensor.is_floating_point():
            tensor.copy_(draw * (0.5 if tensor.ndim < 2 else tensor[0].numel() ** -0.5))
    return module.eval().requires_grad_(False)


def under_other_names(state: dict[str, Tensor], *renamed: tuple[str, str]) -> dict[str, Tensor]:
    for theirs, ours in renamed:
        state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
    return state


def test_the_pool_is_open_clip_s() -> None:
    theirs, ours = randomized(AttentionPool2d(3, 64, 4, 20)), AttentionPool(64, 4, 10, 20)
    renamed = (("positional", "position"), ("c_proj", "out"), ("_proj", ""))
    ours.load_state_dict(under_other_names(theirs.state_dict(), *renamed))
    x = torch.randn(5, 64, 3, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_the_query_of_the_pool_is_the_mean_token() -> None:
    pool, seen = AttentionPool(3, 1, 5, 2), {}
    for name in ("q_input", "input"):
        getattr(pool, name).register_forward_hook(lambda *call, name=name: seen.__setitem__(name, call[-1]))
    pool.position_embedding.data = torch.tensor([[100.0] * 3, [10.0] * 3, [20.0] * 3, [30.0] * 3, [40.0] * 3])
    pool(torch.arange(12.0).reshape(1, 3, 2, 2))  # channels (0 1 2 3), (4 5 6 7), (8 9 10 11): means 1.5, 5.5, 9.5
    places = [[10, 14, 18], [21, 25, 29], [32, 36, 40], [43, 47, 51]]  # row by row, each with its own position
    assert seen["q_input"].tolist() == [[[101.5, 105.5, 109.5]]]
    assert seen["input"].tolist() == [[[101.5, 105.5, 109.5], *places]]


@pytest.mark.parametrize(("inputs", "planes", "stride"), [(16, 4, 1), (8, 4, 1), (8, 4, 2), (16, 4, 2)])
def test_a_bottleneck_is_open_clip_s(inputs: int, planes: int, stride: int) -> None:
    theirs, ours = randomized(TheirBottleneck(inputs, planes, stride)), Bottleneck(inputs, planes, stride, True).eval()
    renamed = (("downsample.0", "shortcut.conv"), ("downsample.1", "shortcut.bn"))
    ours.load_state_dict(under_other_names(theirs.state_dict(), *renamed))
    x = torch.randn(3, inputs, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert ours(x).shape == (3, 4 * planes, 6 // stride, 6 // stride)
        torch.testing.assert_close(ours(x), theirs(x.clone()))


def test_the_stem_is_open_clip_s() -> None:
    visual, stem = open_clip_model(RESNET).visual, Stem(8, True).eval()
    stem.load_state_dict({n: t for n, t in visual.state_dict().items() if n.startswith(("conv", "bn"))})
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert stem(x).shape == (2, 8, 16, 16)
        torch.testing.assert_close(stem(x), visual.stem(x))


def test_a_constant_picture_goes_through_the_stem_as_by_hand() -> None:
    stem = Stem(2, batch_norm=False)
    for conv, weight, bias in ((stem.conv1, 1.0, 0.0), (stem.conv2, 0.0, -1.0), (stem.conv3, 1.0, 2.0)):
        nn.init.constant_(conv.weight, weight)
        nn.init.constant_(conv.bias, bias)
    # conv2 gives relu(-1) = 0 everywhere, so conv3 gives relu(0 + 2) = 2 and its average is 2
    with torch.no_grad():
        assert torch.equal(stem(torch.ones(1, 3, 8, 8)), torch.full((1, 2, 2, 2), 2.0))


@pytest.mark.parametrize(
    "output_of",
    [
        lambda clip: [clip.image.stem.pool_out],
        lambda clip: [block.sum_out for _, block in clip.image.named_blocks()],
        lambda clip: [site for _, block in clip.image.named_blocks() for site in (block.conv1_out, block.conv2_out)],
    ],
    ids=["stem", "sums", "inner convolutions"],
)
def test_sites_behind_a_relu_are_never_negative(
    output_of: Callable[[Clip], list[nn.Module]], tiny_resnet: Clip, pixels: Tensor
) -> None:
    lows: list[float] = []
    handles = [
        module.register_forward_hook(lambda *call: lows.append(float(call[-1].min())))
        for module in output_of(tiny_resnet)
    ]
    tiny_resnet.encode_image(pixels)
    for handle in handles:
        handle.remove()
    assert lows
    assert set(lows) == {0.0}  # zero itself is met: the ReLU is before the site

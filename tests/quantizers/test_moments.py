import pytest
import torch
from torch import Tensor

from d4c.quantizers.moments import Moments, merge_all


def streams(tokens: int, seed: int = 0, channels: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Float stream and quantized stream [token, in], a weight [out, in] and token weights, all in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, channels, generator=generator, dtype=torch.float64) + 3
    noisy = x + 0.1 * torch.randn(tokens, channels, generator=generator, dtype=torch.float64) - 0.05
    weight = torch.randn(4, channels, generator=generator, dtype=torch.float64)
    return x, noisy, weight, torch.rand(tokens, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_error_is_that_of_the_outputs(centred: bool, weighted: bool) -> None:
    x, noisy, weight, share = streams(50)
    moments = Moments.of(x, noisy, weight, share if weighted else None, centred=centred)
    change = 0.1 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shift = torch.tensor([0.3, -0.2, 0.0, 0.1], dtype=torch.float64) * centred
    outputs = x @ weight.T - noisy @ (weight + change).T - shift  # [token, out]
    w = share if weighted else torch.ones_like(share)
    expected = (w[:, None] * outputs.square()).sum(dim=0) / w.sum()
    torch.testing.assert_close(moments.error(weight, change, shift), expected)


def test_the_bias_shift_cancels_the_mean_error_and_is_the_best() -> None:
    x, noisy, weight, _ = streams(50)
    moments = Moments.of(x, noisy, weight, None, centred=True)
    change = torch.full_like(weight, 0.05)
    shift = moments.bias_shift(weight, change)
    outputs = x @ weight.T - noisy @ (weight + change).T
    torch.testing.assert_close(shift, outputs.mean(dim=0))
    best = moments.error(weight, change, shift)
    for step in (-1e-3, 1e-3):
        assert bool((moments.error(weight, change, shift + step) > best).all())


@pytest.mark.parametrize("centred", [True, False])
def test_sums_do_not_depend_on_how_tokens_are_split(centred: bool) -> None:
    x, noisy, weight, share = streams(101)
    whole = Moments.of(x, noisy, weight, share, centred=centred)
    for size in (1, 13, 64):
        pieces = zip(x.split(size), noisy.split(size), share.split(size), strict=True)
        parts = [Moments.of(a, b, weight, w, centred=centred) for a, b, w in pieces]
        merged = merge_all(parts, weight)
        for name in ("count", "mean", "drift", "gram", "cross", "lost"):
            torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_a_token_of_no_weight_changes_nothing() -> None:
    x, noisy, weight, share = streams(20)
    share[5:] = 0
    some = Moments.of(x[:5], noisy[:5], weight, share[:5], centred=True)
    every = Moments.of(x, noisy, weight, share, centred=True)
    empty = Moments.of(x[5:], noisy[5:], weight, share[5:], centred=True)
    for moments in (every, some.merge(empty, weight), empty.merge(some, weight)):
        torch.testing.assert_close(moments.gram, some.gram)
        torch.testing.assert_close(moments.lost, some.lost)
        torch.testing.assert_close(moments.mean, some.mean)


def test_float32_keeps_what_a_large_common_mean_would_hide() -> None:
    x, noisy, weight, _ = streams(400)
    offset = torch.tensor([1e3, 0, 0, 0, 0, 0], dtype=torch.float64)  # a massive activation, the same in every token
    exact = Moments.of(x + offset, noisy + offset, weight, None, centred=True)
    parts = [
        Moments.of((a + offset).float(), (b + offset).float(), weight.float(), None, centred=True)
        for a, b in zip(x.split(64), noisy.split(64), strict=True)
    ]
    merged = merge_all(parts, weight.float())
    torch.testing.assert_close(merged.gram.double(), exact.gram, rtol=2e-3, atol=2e-2)
    naive = ((noisy + offset).float().T @ (noisy + offset).float()).double()
    mean = (noisy + offset).float().mean(dim=0).double()
    assert (naive - 400 * mean[:, None] * mean - exact.gram).abs().max() > 5 * (
        merged.gram.double() - exact.gram
    ).abs().max()


def test_the_order_of_additions_is_a_binary_tree() -> None:
    x, noisy, weight, _ = streams(40)
    parts = [Moments.of(a, b, weight, None, centred=True) for a, b in zip(x.split(8), noisy.split(8), strict=True)]
    a, b, c, d, e = parts
    by_hand = a.merge(b, weight).merge(c.merge(d, weight), weight).merge(e, weight)
    assert torch.equal(merge_all(parts, weight).gram, by_hand.gram)

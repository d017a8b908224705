import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4c.models.attention import (
    Attention,
    AttentionProducts,
    Block,
    LayerScale,
    Mlp,
    ProbePool,
    QuickGELU,
    activation_module,
    merge_heads,
    split_heads,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)  # modules draw their parameters from the global generator


def causal(length: int) -> Tensor:
    return torch.full((length, length), -torch.inf).triu(1)


def test_activations_are_their_formulas() -> None:
    x = torch.tensor([-2.0, 0.0, 1.0])
    # x / (1 + exp(-1.702 x)): -2 / (1 + e^3.404) = -2 / 31.0842, 0, 1 / (1 + e^-1.702) = 1 / 1.182318
    torch.testing.assert_close(QuickGELU()(x), torch.tensor([-0.064341, 0.0, 0.845796]), rtol=1e-5, atol=1e-6)
    # x Φ(x), with Φ(1) = 0.8413447 and Φ(-2) = 0.0227501
    torch.testing.assert_close(activation_module("gelu")(x), torch.tensor([-0.0455003, 0.0, 0.8413447]))
    tanh = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    torch.testing.assert_close(activation_module("gelu_tanh")(x), torch.tensor(tanh))
    torch.testing.assert_close(activation_module("quick_gelu")(x), QuickGELU()(x))


def test_heads_are_consecutive_channels() -> None:
    x = torch.arange(8.0).reshape(1, 2, 4)  # two tokens of channels 0..3 and 4..7
    assert split_heads(x, 2).tolist() == [[[[0, 1], [4, 5]], [[2, 3], [6, 7]]]]
    many = torch.randn(3, 5, 12)
    assert torch.equal(merge_heads(split_heads(many, 4)), many)


def test_two_tokens_attend_as_by_hand() -> None:
    # One head of one channel: q = (0, 1), k = (0, ln 3), so logits are (0, 0) and (0, ln 3), probabilities (1/2, 1/2)
    # and (1/4, 3/4); v = (4, 8) gives 6 and 7. Under the mask the first token sees itself alone: 4.
    q, k, v = (torch.tensor([[[a], [b]]]) for a, b in ((0.0, 1.0), (0.0, math.log(3)), (4.0, 8.0)))
    products = AttentionProducts(1)
    torch.testing.assert_close(products.products(q, k, v), torch.tensor([[[6.0], [7.0]]]))
    torch.testing.assert_close(products.products(q, k, v, causal(2)), torch.tensor([[[4.0], [7.0]]]))


@pytest.mark.parametrize(("queries", "keys", "masked"), [(7, 7, False), (7, 7, True), (1, 7, False), (3, 5, False)])
def test_products_are_scaled_dot_product_attention(queries: int, keys: int, masked: bool) -> None:
    q, k, v = (3 * torch.randn(2, length, 24) for length in (queries, keys, keys))
    mask = causal(queries) if masked else None
    expected = F.scaled_dot_product_attention(*(split_heads(x, 4) for x in (q, k, v)), attn_mask=mask)
    torch.testing.assert_close(AttentionProducts(4).products(q, k, v, mask), merge_heads(expected))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torch_s_multi_head_attention(masked: bool) -> None:
    ours, theirs = Attention(24, 4), nn.MultiheadAttention(24, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_bias.normal_()
        theirs.out_proj.bias.normal_()
        weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for linear, weight, bias in zip((ours.q, ours.k, ours.v), weights, biases, strict=True):
        linear.weight.data, linear.bias.data = weight, bias
    ours.out.load_state_dict(theirs.out_proj.state_dict())
    x, mask = torch.randn(2, 5, 24), causal(5) if masked else None
    torch.testing.assert_close(ours(x, mask), theirs(x, x, x, attn_mask=mask, need_weights=False)[0])


def test_sites_of_attention_hold_what_their_names_say() -> None:
    attention, x, seen = Attention(24, 4), torch.randn(2, 5, 24), {}
    for name, module in attention.named_modules():
        module.register_forward_hook(lambda _, args, out, name=name: seen.__setitem__(name, (args[0], out)))
    attention(x, causal(5))
    assert torch.equal(seen["input"][1], x)
    for name in "qkv":
        assert torch.equal(seen[f"{name}_out"][0], seen[name][1])
    probabilities = seen["probabilities"][0]
    assert probabilities.shape == (2, 4, 5, 5)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(2, 4, 5))
    assert bool((probabilities.triu(1) == 0).all())
    context = merge_heads(probabilities @ split_heads(seen["v"][1], 4))
    torch.testing.assert_close(seen["context"][0], context)
    assert torch.equal(seen["out"][0], seen["context"][1])


def test_layer_scale_multiplies_each_channel() -> None:
    scale = LayerScale(2)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(scale(x), x)
    scale.gamma.data = torch.tensor([10.0, -1.0])
    assert scale(x).tolist() == [[10, -2], [30, -4]]


@pytest.mark.parametrize("layer_scale", [False, True])
def test_a_block_adds_attention_then_mlp(layer_scale: bool) -> None:
    block = Block(24, 4, 40, "gelu", norm_eps=0.1, layer_scale=layer_scale)
    if layer_scale:
        block.scale1.gamma.data, block.scale2.gamma.data = torch.randn(24), torch.randn(24)
    factors = (block.scale1.gamma, block.scale2.gamma) if layer_scale else (1.0, 1.0)
    x, mask = torch.randn(2, 5, 24), causal(5)
    y = x + factors[0] * block.attention(F.layer_norm(x, (24,), block.norm1.weight, block.norm1.bias, 0.1), mask)
    normed = F.layer_norm(y, (24,), block.norm2.weight, block.norm2.bias, 0.1)
    expected = y + factors[1] * block.mlp.fc2(F.gelu(block.mlp.fc1(normed)))
    torch.testing.assert_close(block(x, mask), expected)


def test_hidden_of_the_mlp_is_behind_the_activation() -> None:
    mlp, x, seen = Mlp(6, 10, "quick_gelu"), torch.randn(3, 6), []
    mlp.hidden.register_forward_hook(lambda *call: seen.append(call[-1]))
    mlp(x)
    hidden = mlp.fc1(x)
    torch.testing.assert_close(seen[0], hidden * torch.sigmoid(1.702 * hidden))


def test_a_probe_pools_as_torch_s_attention_with_one_query() -> None:
    pool = ProbePool(24, 4, 40, "gelu_tanh", norm_eps=1e-6)
    theirs = nn.MultiheadAttention(24, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_bias.normal_()
        weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for linear, weight, bias in zip((pool.q, pool.k, pool.v), weights, biases, strict=True):
        linear.weight.data, linear.bias.data = weight, bias
    pool.out.load_state_dict(theirs.out_proj.state_dict())
    x = torch.randn(3, 5, 24)
    y = theirs(pool.probe.expand(3, 1, -1), x, x, need_weights=False)[0][:, 0]  # [batch, channel]
    normed = F.layer_norm(y, (24,), pool.norm.weight, pool.norm.bias, 1e-6)
    expected = y + pool.mlp.fc2(F.gelu(pool.mlp.fc1(normed), approximate="tanh"))
    torch.testing.assert_close(pool(x), expected)


def test_a_probe_sees_every_token_whatever_their_order() -> None:
    pool, x = ProbePool(24, 4, 40, "gelu", norm_eps=1e-6), torch.randn(2, 5, 24)
    torch.testing.assert_close(pool(x[:, [3, 1, 4, 0, 2]]), pool(x))
    moved = pool(torch.cat([x[:, :4], 2 * x[:, 4:]], dim=1))
    assert float((moved - pool(x)).detach().abs().max()) > 1e-4

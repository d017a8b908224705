import pytest
import torch
from torch import Tensor, nn

from d4c.models import Clip
from d4c.models.folding import fold_batchnorm
from d4c.models.parts import (
    Part,
    TowerName,
    captured_inputs,
    input_to,
    keep_live,
    live_tokens,
    pooled_token,
    run_in_batches,
    tower_parts,
)
from d4c.models.sites import layer_sites, tensor_sites

CASES = [
    ("tiny_clip", "image"), ("tiny_clip", "text"), ("tiny_resnet", "image"), ("folded", "image"),
    ("tiny_siglip", "image"), ("tiny_siglip", "text"),
]  # fmt: skip
Case = tuple[Clip, TowerName, Tensor]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, tiny_resnet: Clip, pixels: Tensor, ids: Tensor) -> Case:
    """A model, one of its towers, and what that tower reads."""
    model, tower = request.param
    clip: Clip = fold_batchnorm(tiny_resnet) if model == "folded" else request.getfixturevalue(model)
    return clip, tower, pixels if tower == "image" else clip.text.trim(ids)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def forward(clip: Clip, tower: TowerName, inputs: Tensor) -> Tensor:
    return clip.encode_image(inputs) if tower == "image" else clip.encode_text(inputs)


@pytest.mark.parametrize("halves", [False, True])
def test_parts_one_after_the_other_are_the_tower_exactly(case: Case, halves: bool) -> None:
    clip, tower, inputs = case
    x = inputs
    for part in tower_parts(clip, tower, halves=halves):
        x = part.run(x, inputs)
    assert torch.equal(x, forward(clip, tower, inputs))


def test_parts_are_named_by_their_path(tiny_clip: Clip, tiny_resnet: Clip) -> None:
    blocks = ["blocks.0", "blocks.1"]
    for tower in ("image", "text"):
        expected = [f"{tower}.{name}" for name in ("embed", *blocks, "head")]
        assert [part.name for part in tower_parts(tiny_clip, tower)] == expected
    stages = [f"image.layer{stage}.0" for stage in (1, 2, 3, 4)]
    for halves in (False, True):
        parts = tower_parts(tiny_resnet, "image", halves=halves)
        assert [part.name for part in parts] == ["image.embed", *stages, "image.head"]


def test_halves_of_a_block_are_its_attention_and_its_mlp(tiny_clip: Clip) -> None:
    names = [part.name for part in tower_parts(tiny_clip, "text", halves=True)]
    halves = [f"text.blocks.{i}.{half}" for i in (0, 1) for half in ("attention", "mlp")]
    assert names == ["text.embed", *halves, "text.head"]


@pytest.mark.parametrize("halves", [False, True])
def test_every_site_belongs_to_the_one_part_that_passes_it(case: Case, halves: bool) -> None:
    clip, tower, inputs = case
    names = [name for name in (*layer_sites(clip), *tensor_sites(clip)) if name.startswith(f"{tower}.")]
    parts, x, left = tower_parts(clip, tower, halves=halves), inputs, set(names)
    for part in parts:
        with captured_inputs(clip, names) as seen:
            x = part.run(x, inputs)
        passed = {name for name, calls in seen.items() if calls}
        assert passed == {name for name in names if part.owns(name)}
        left -= passed
    assert not left


def test_names_that_begin_alike_belong_to_different_parts(tiny_clip: Clip) -> None:
    block = tower_parts(tiny_clip, "image")[2]
    assert block.owns("image.blocks.1.mlp.fc1")
    assert not block.owns("image.blocks.10.mlp.fc1")
    assert not block.owns("text.blocks.1.mlp.fc1")


def test_batches_are_run_in_order_and_without_gradients(case: Case) -> None:
    clip, tower, inputs = case
    part = tower_parts(clip, tower)[0]
    sizes: list[int] = []

    def counted(x: Tensor, i: Tensor) -> Tensor:
        assert len(x) == len(i)
        assert not torch.is_grad_enabled()
        sizes.append(len(x))
        return part.run(x, i)

    together = run_in_batches(part, inputs, inputs, batch=100)
    apart = run_in_batches(Part("counted", (), counted), inputs, inputs, batch=4)
    torch.testing.assert_close(apart, together)
    assert sizes == [4, 4] if tower == "image" else [4, 2]
    assert torch.is_grad_enabled()


def test_captured_inputs_are_kept_call_by_call() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    x = torch.tensor([[1.0, -1.0]], requires_grad=True)
    with captured_inputs(model, ["0", "1"]) as seen:
        model(x)
        model(2 * x)
    model(x)  # after the `with` nothing is kept
    assert [len(calls) for calls in seen.values()] == [2, 2]
    assert seen["0"][1].tolist() == [[2, -2]]
    torch.testing.assert_close(seen["1"][0], model[0](x).detach())
    assert not any(tensor.requires_grad for calls in seen.values() for tensor in calls)


def test_hooks_come_off_after_the_with_and_after_an_error(tiny_clip: Clip, pixels: Tensor) -> None:
    names, before = tensor_sites(tiny_clip), hooks_of(tiny_clip)
    with captured_inputs(tiny_clip, names):
        assert hooks_of(tiny_clip) == before + len(names)
    assert hooks_of(tiny_clip) == before
    with pytest.raises(RuntimeError), captured_inputs(tiny_clip, names):
        tiny_clip.encode_image(pixels[:, :1])  # one colour channel
    assert hooks_of(tiny_clip) == before


def test_no_hook_stays_where_one_name_is_wrong() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(AttributeError, match="nowhere"), captured_inputs(model, ["0", "nowhere"]):
        pass
    assert hooks_of(model) == 0


def test_live_tokens_are_those_up_to_the_end_token(tiny_clip: Clip) -> None:
    ids = torch.tensor([[49406, 320, 49407, 0], [49406, 49407, 0, 0], [49406, 320, 321, 49407]])
    assert live_tokens(tiny_clip, ids).int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_dead_tokens_never_reach_the_embedding_and_live_ones_do(tiny_clip: Clip, ids: Tensor) -> None:
    trimmed = tiny_clip.text.trim(ids)
    embed, *blocks, head = tower_parts(tiny_clip, "text")
    live = live_tokens(tiny_clip, trimmed)

    def rest(x: Tensor) -> Tensor:
        for part in (*blocks, head):
            x = part.run(x, trimmed)
        return x

    x = embed.run(trimmed, trimmed)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rest(torch.where(live[..., None], x, noise)), rest(x), rtol=0, atol=1e-6)
    for position in range(trimmed.shape[1]):
        moved = x.clone()
        moved[:, position] += noise[:, position]
        changed = (rest(moved) - rest(x)).norm(dim=1) > 1e-4
        assert torch.equal(changed, live[:, position])


def test_keeping_the_live_drops_dead_queries_only() -> None:
    live = torch.tensor([[True, True, False], [True, False, False]])
    tokens = torch.arange(6.0).reshape(2, 3, 1)  # sample, token: 0 1 2 / 3 4 5
    assert keep_live(tokens, live).tolist() == [[0], [1], [3]]
    # two heads; entry 100 sample + 10 head + query, the same for both keys
    factors = torch.stack([torch.arange(3.0), torch.arange(10.0, 13.0)])[None, :, :, None]  # [1, head, query, 1]
    factors = torch.cat([factors, factors + 100]).expand(2, 2, 3, 2)
    kept = keep_live(factors, live)
    assert kept[..., 0].tolist() == [[0, 10], [1, 11], [100, 110]]
    assert kept.shape == (3, 2, 2)
    pooled = torch.ones(2, 4)
    assert keep_live(pooled, live) is pooled
    assert keep_live(tokens, None) is tokens


def test_the_input_of_a_module_is_what_the_whole_part_would_bring_it(case: Case) -> None:
    clip, tower, inputs = case
    x = inputs
    for part in tower_parts(clip, tower):
        names = [name for name in (*layer_sites(clip), *tensor_sites(clip)) if part.owns(name)]
        with captured_inputs(clip, names) as seen:
            out = part.run(x, inputs)
        for name in names:
            assert torch.equal(input_to(clip, name, part, x, inputs), seen[name][0])
        x = out
    assert hooks_of(clip) == 0


def test_what_lies_behind_a_wanted_input_is_not_computed(tiny_clip: Clip, pixels: Tensor) -> None:
    embed = tower_parts(tiny_clip, "image")[0]
    behind: list[nn.Module] = []
    handle = tiny_clip.image.norm_pre.register_forward_hook(lambda module, _, __: behind.append(module))
    input_to(tiny_clip, "image.patch_embedding", embed, pixels, pixels)
    handle.remove()
    assert not behind


def test_only_the_pooled_token_of_the_last_block_reaches_the_embedding(case: Case) -> None:
    clip, tower, inputs = case
    head = tower_parts(clip, tower)[-1]
    pooled = pooled_token(clip, tower, inputs)
    x = inputs
    for part in tower_parts(clip, tower)[:-1]:
        x = part.run(x, inputs)
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(head.run(x, inputs).square().sum(), x)
    if pooled is None:
        assert x.ndim == 4 or bool((gradient.abs().sum(dim=-1) > 0).all())  # feature maps, or all tokens count
        return
    reached = gradient.abs().sum(dim=-1) > 0  # [sample, token]
    assert torch.equal(reached, torch.nn.functional.one_hot(pooled, x.shape[1]).bool())

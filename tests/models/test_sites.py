import pytest
import torch
from torch import Tensor, nn

from d4c.models import Clip, sites_of
from d4c.models.folding import fold_batchnorm
from d4c.models.parts import tower_parts
from d4c.models.sites import LAYER_TYPES, TensorSite, is_attention_factor, layer_sites, tensor_sites

BLOCK_LAYERS = ["attention.q", "attention.k", "attention.v", "attention.out", "mlp.fc1", "mlp.fc2"]
BLOCK_TENSORS = {
    "attention.input", "attention.q_out", "attention.k_out", "attention.v_out", "attention.probabilities",
    "attention.context", "mlp.input", "mlp.hidden",
}  # fmt: skip
POOL_TENSORS = {"input", "q_input", "q_out", "k_out", "v_out", "probabilities", "context"}


@pytest.fixture(params=["tiny_clip", "tiny_resnet", "tiny_siglip", "folded"])
def clip(request: pytest.FixtureRequest, tiny_resnet: Clip) -> Clip:
    return fold_batchnorm(tiny_resnet) if request.param == "folded" else request.getfixturevalue(request.param)


def blocks(tower: str) -> list[str]:
    return [f"{tower}.blocks.{i}" for i in range(2)]


TEXT_LAYERS = ["text.token_embedding", *[f"{b}.{n}" for b in blocks("text") for n in BLOCK_LAYERS], "text.projection"]


def test_layers_of_a_vit_in_the_order_of_the_forward_pass(tiny_clip: Clip) -> None:
    image = [f"{block}.{name}" for block in blocks("image") for name in BLOCK_LAYERS]
    assert layer_sites(tiny_clip) == ["image.patch_embedding", *image, "image.projection", *TEXT_LAYERS]


def test_layers_of_a_resnet_in_the_order_of_the_forward_pass(tiny_resnet: Clip) -> None:
    stem = [f"image.stem.conv{i}" for i in (1, 2, 3)]
    stages = [f"image.layer{s}.0.{n}" for s in (1, 2, 3, 4) for n in ("conv1", "conv2", "conv3", "shortcut.conv")]
    pool = [f"image.pool.{name}" for name in ("q", "k", "v", "out")]
    assert layer_sites(tiny_resnet) == [*stem, *stages, *pool, *TEXT_LAYERS]


def test_layers_and_tensors_of_siglip(tiny_siglip: Clip) -> None:
    image = [f"{block}.{name}" for block in blocks("image") for name in BLOCK_LAYERS]
    pool = [f"image.pool.{name}" for name in ("q", "k", "v", "out", "mlp.fc1", "mlp.fc2")]
    assert layer_sites(tiny_siglip) == ["image.patch_embedding", *image, *pool, *TEXT_LAYERS]
    inner = {f"{block}.{name}" for tower in ("image", "text") for block in blocks(tower) for name in BLOCK_TENSORS}
    pooled = {f"image.pool.{name}" for name in (*POOL_TENSORS, "mlp.input", "mlp.hidden")}
    # nothing reads the pooled token, which is the embedding
    assert set(tensor_sites(tiny_siglip)) == {"image.pixels", "text.pooled"} | inner | pooled


def test_tensors_of_a_vit(tiny_clip: Clip) -> None:
    inner = {f"{block}.{name}" for tower in ("image", "text") for block in blocks(tower) for name in BLOCK_TENSORS}
    assert set(tensor_sites(tiny_clip)) == {"image.pixels", "image.pooled", "text.pooled"} | inner


def test_tensors_of_a_resnet(tiny_resnet: Clip) -> None:
    stem = {"image.pixels", *(f"image.stem.{n}" for n in ("conv1_out", "conv2_out", "conv3_out", "pool_out"))}
    inner = {"conv1_out", "conv2_out", "conv3_out", "shortcut.conv_out", "sum_out"}
    stages = {f"image.layer{s}.0.{n}" for s in (1, 2, 3, 4) for n in inner}
    pooled = {f"image.layer{s}.0.{n}" for s in (2, 3, 4) for n in ("pool_out", "shortcut.pool_out")}  # strides of 2
    pool = {f"image.pool.{name}" for name in POOL_TENSORS}
    image = {name for name in tensor_sites(tiny_resnet) if name.startswith("image.")}
    assert image == stem | stages | pooled | pool


def test_every_name_leads_to_a_module_and_appears_once(clip: Clip) -> None:
    for names, types in ((layer_sites(clip), LAYER_TYPES), (tensor_sites(clip), TensorSite)):
        assert len(names) == len(set(names)) > 0
        for name in names:
            assert isinstance(clip.get_submodule(name), types)


def test_every_site_is_passed_through_once(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    passed: list[str] = []
    names = [*layer_sites(clip), *tensor_sites(clip)]
    handles = [
        clip.get_submodule(name).register_forward_hook(lambda *_, name=name: passed.append(name)) for name in names
    ]
    clip(pixels[:1], ids[:1])
    for handle in handles:
        handle.remove()
    assert sorted(passed) == sorted(names)
    assert [name for name in passed if name in layer_sites(clip)] == layer_sites(clip)


def test_tensors_come_part_by_part(clip: Clip) -> None:
    for tower in ("image", "text"):
        parts = tower_parts(clip, tower)
        names = [name for name in tensor_sites(clip) if name.startswith(f"{tower}.")]
        order = [next(i for i, part in enumerate(parts) if part.owns(name)) for name in names]
        assert order == sorted(order)


def test_sites_change_nothing() -> None:
    x = torch.randn(3, 4)
    assert TensorSite()(x) is x
    assert not isinstance(nn.Identity(), TensorSite)


def test_attention_factors_are_the_operands_of_its_products(clip: Clip) -> None:
    factors = {site for site in tensor_sites(clip) if is_attention_factor(site)}
    assert factors == sites_of(clip).attention_factors
    assert {site.rpartition(".")[2] for site in factors} == {"q_out", "k_out", "v_out", "probabilities"}
    for no_factor in ("image.layer1.0.conv1_out", "image.layer1.0.shortcut.conv_out", "image.pool.context", "q_out"):
        assert not is_attention_factor(no_factor)

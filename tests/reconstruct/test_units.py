from collections import Counter
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from d4c import calibrate
from d4c.images import ImageSet
from d4c.models import Clip, QuantizedClip, sites_of, wrap
from d4c.models.attention import Block
from d4c.models.folding import fold_batchnorm
from d4c.models.parts import TowerName, tower_parts
from d4c.quantizers.layers import QuantLayer, UniformQuantizer
from d4c.quantizers.scheme import Scheme, resolve_scheme
from d4c.recipes import Calibrate, load_recipe
from d4c.reconstruct.units import SharedInput, Unit, units_of

MINMAX = Calibrate(range="minmax")  # fast; where grids lie does not matter here
Kind = Literal["layer", "block", "auto"]
TOWERS: tuple[TowerName, TowerName] = ("image", "text")


def wrapped(clip: Clip, recipe: str, pixels: Tensor, ids: Tensor) -> tuple[Clip, QuantizedClip]:
    """The folded float model and its quantized counterpart."""
    clip = fold_batchnorm(clip)
    scheme = resolve_scheme(load_recipe(recipe, []), sites_of(clip))
    return clip, wrap(clip, scheme, calibrate.run(clip, ImageSet.unlabelled(pixels, "p"), ids, scheme, MINMAX))


def all_units(clip: Clip, quantized: QuantizedClip, kind: Kind) -> list[Unit]:
    return [u for t in TOWERS for part in tower_parts(quantized, t) for u in units_of(part, quantized, clip, kind)]


@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet"])
@pytest.mark.parametrize("recipe", ["w4a8", "w4a4", "w4"])
@pytest.mark.parametrize("kind", ["layer", "block", "auto"])
def test_units_cover_every_layer_exactly_once(
    model: str, recipe: str, kind: Kind, request: pytest.FixtureRequest, pixels: Tensor, ids: Tensor
) -> None:
    clip, quantized = wrapped(request.getfixturevalue(model), recipe, pixels, ids)
    units = all_units(clip, quantized, kind)
    layers = [name for name, module in quantized.named_modules() if isinstance(module, QuantLayer)]
    covered = Counter(site for unit in units for site in unit.weights)
    assert covered == Counter(set(layers) - {"text.token_embedding"})
    learning = [id(unit.quantizer(path)) for unit in units for path in unit.quantizers]
    assert len(learning) == len(set(learning))
    if recipe == "w4a4":  # each layer's own input scale learns
        own = {id(m) for n, m in quantized.named_modules() if isinstance(m, UniformQuantizer)}
        assert set(learning) == own
    assert len({unit.name for unit in units}) == len(units)


@pytest.mark.parametrize("kind", ["layer", "block", "auto"])
def test_parts_that_stayed_float_have_no_units(tiny_resnet: Clip, pixels: Tensor, ids: Tensor, kind: Kind) -> None:
    folded, recipe = fold_batchnorm(tiny_resnet), load_recipe("w4a8", ["calibrate.range=minmax"])
    scheme = resolve_scheme(recipe, sites_of(folded))
    text = Scheme(
        *({k: v for k, v in d.items() if k.startswith("text.")} for d in (scheme.weights, scheme.tensors, {}))
    )
    images = ImageSet.unlabelled(pixels, "test")
    quantized = wrap(folded, text, calibrate.run(folded, images, ids, text, recipe.calibrate))
    assert {unit.name.partition(".")[0] for unit in all_units(folded, quantized, kind)} == {"text"}


@pytest.mark.parametrize(
    ("model", "recipe", "kind", "count"),
    [
        # A ViT block has q+k+v, out, fc1, fc2; two blocks and the ends make 1 + 8 + 1 images, 8 + 1 text units.
        ("tiny_clip", "w4a8", "auto", 10 + 9),
        ("tiny_clip", "w4a8", "block", 4 + 3),
        # With inputs quantized one by one, q, k and v are alone, as in the paper: 1 + 12 + 1 and 12 + 1.
        ("tiny_clip", "w4a4", "auto", 14 + 13),
        # Three in the stem, four bottlenecks, q, k+v and out of the pool.
        ("tiny_resnet", "w4a8", "auto", 10 + 9),
        # Stem 3; layer1.0: conv1+shortcut, conv2, conv3; layer2.0 to 4.0: conv1, conv2, conv3, shortcut each; pool 3.
        ("tiny_resnet", "w4a8", "layer", 3 + 3 + 12 + 3 + 9),
        ("tiny_resnet", "w4a4", "auto", 3 + 4 + 4 + 13),
    ],
)
def test_units_are_counted_by_hand(
    model: str, recipe: str, kind: Kind, count: int, request: pytest.FixtureRequest, pixels: Tensor, ids: Tensor
) -> None:
    assert len(all_units(*wrapped(request.getfixturevalue(model), recipe, pixels, ids), kind)) == count


def test_readers_of_one_tensor_are_one_unit_with_one_scale(tiny_resnet: Clip, pixels: Tensor, ids: Tensor) -> None:
    clip, quantized = wrapped(tiny_resnet, "w4a8", pixels, ids)
    units = {frozenset(unit.weights): unit for unit in all_units(clip, quantized, "auto")}
    attention, pool = "text.blocks.1.attention", "image.pool"
    qkv = units[frozenset({f"{attention}.q", f"{attention}.k", f"{attention}.v"})]
    assert [qkv.quantizer(p) for p in qkv.quantizers] == [quantized.get_submodule(f"{attention}.input")]
    kv = units[frozenset({f"{pool}.k", f"{pool}.v"})]
    assert [kv.quantizer(p) for p in kv.quantizers] == [quantized.get_submodule(f"{pool}.input")]


@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet"])
@pytest.mark.parametrize("recipe", ["w4a8", "w4a4"])
@pytest.mark.parametrize("kind", ["layer", "block"])
def test_a_unit_computes_what_its_layers_compute_in_the_model(
    model: str, recipe: str, kind: Kind, request: pytest.FixtureRequest, pixels: Tensor, ids: Tensor
) -> None:
    clip, quantized = wrapped(request.getfixturevalue(model), recipe, pixels, ids)
    for unit in all_units(clip, quantized, kind):
        for whole, path, module in (
            (quantized, unit.input_of, unit.module),
            (clip, unit.reference_input_of, unit.reference),
        ):
            outputs = list(unit.weights) if isinstance(module, SharedInput) else [path]
            x, mask, expected = _run(whole, path, outputs, pixels, ids)
            torch.testing.assert_close(module(x, mask) if isinstance(module, Block) else module(x), expected)


def _run(
    clip: Clip, path: str, outputs: list[str], pixels: Tensor, ids: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What goes into a module, the mask beside it, and what some modules put out, channels side by side."""
    seen: dict[str, tuple[Tensor, ...]] = {}

    def keep_input(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["<"] = args

    handles = [clip.get_submodule(path).register_forward_pre_hook(keep_input)]
    for name in outputs:
        handles.append(
            clip.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.__setitem__(name, (y,)))
        )
    clip(pixels, ids)
    for handle in handles:
        handle.remove()
    y = [seen[name][0] for name in outputs]
    args = seen["<"]
    return args[0], args[1] if len(args) > 1 else None, torch.cat(y, dim=1 if y[0].ndim == 4 else -1)

import itertools

import pytest
import torch
from torch import Tensor

from d4c.calibrate import CHOICES, choosable, choose_bits, sensitivities
from d4c.models import Clip, sites_of
from d4c.models.folding import fold_batchnorm
from d4c.quantizers.pair_safe import pair_safe_span
from d4c.quantizers.scheme import Scheme, resolve_scheme
from d4c.recipes import Calibrate, load_recipe


def problem(seed: int, layers: int = 8) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, int]]]:
    """Costs that fall with the number of bits, and sizes of very different layers."""
    generator = torch.Generator().manual_seed(seed)
    costs, sizes = {}, {}
    for i in range(layers):
        a, b, c = (torch.rand(3, generator=generator) + 0.01).sort(descending=True).values.tolist()
        count = int(torch.randint(1, 2000, (), generator=generator))
        costs[f"layer{i}"], sizes[f"layer{i}"] = {4: a, 6: b, 8: c}, {4: count, 6: 2 * count, 8: 2 * count}
    return costs, sizes


def total(table: dict[str, dict[int, float]], bits: dict[str, int]) -> float:
    return sum(table[layer][num] for layer, num in bits.items())


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    costs, sizes = problem(seed)
    least = sum(s[4] for s in sizes.values())
    for share in (0.0, 0.1, 0.37, 0.8, 1.0, 1.5):
        budget = int(least * (1 + share))
        found = choose_bits(costs, sizes, budget)
        assert list(found) == list(costs)
        assert total(sizes, found) <= budget  # type: ignore[arg-type]
        every = (dict(zip(costs, bits, strict=True)) for bits in itertools.product((4, 8), repeat=8))
        best = min(total(costs, bits) for bits in every if total(sizes, bits) <= budget)  # type: ignore[arg-type]
        assert total(costs, found) == pytest.approx(best)


def test_a_larger_budget_is_never_worse() -> None:
    costs, sizes = problem(1, layers=40)
    least = sum(s[4] for s in sizes.values())
    reached = [total(costs, choose_bits(costs, sizes, b)) for b in (*range(least, 2 * least, least // 37), 2 * least)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(reached))
    assert reached[-1] == pytest.approx(sum(c[8] for c in costs.values()))


def test_large_layers_are_counted_coarsely_and_never_exceed() -> None:
    costs = {"a": {4: 1.0, 8: 0.0}, "b": {4: 0.9, 8: 0.0}}
    sizes = {"a": {4: 10**9 + 1, 8: 2 * 10**9 + 2}, "b": {4: 10**9 - 7, 8: 2 * 10**9 - 14}}
    for budget in (2 * 10**9 + 10, 3 * 10**9 - 10, 3 * 10**9 + 20_000, 5 * 10**9):
        found = choose_bits(costs, sizes, budget)
        assert total(sizes, found) <= budget  # type: ignore[arg-type]
    assert found == {"a": 8, "b": 8}
    assert choose_bits(costs, sizes, 3 * 10**9 + 20_000) == {"a": 8, "b": 4}


def test_a_budget_met_to_the_byte_is_spent() -> None:
    sizes = {name: {4: 2**21 + 2**14, 8: 2**21 + 2**15} for name in "ab"} | {"c": {4: 0, 8: 2**22}}
    costs = {name: {4: 1.0, 8: 0.0} for name in sizes}
    chosen = choose_bits(costs, sizes, sum(sizes[name][8] for name in "ab"))
    assert chosen == {"a": 8, "b": 8, "c": 4}


def test_too_small_a_budget_says_what_is_needed() -> None:
    costs, sizes = problem(0)
    least = sum(s[4] for s in sizes.values())
    with pytest.raises(ValueError, match=f"{least} are needed"):
        choose_bits(costs, sizes, least - 8)


def schemes_of(clip: Clip) -> dict[int, Scheme]:
    recipe, sites = load_recipe("w4a8"), sites_of(clip)
    layers = choosable(resolve_scheme(recipe, sites))
    return {b: resolve_scheme(recipe.with_weight_bits(dict.fromkeys(layers, b)), sites) for b in CHOICES}


@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet"])
def test_costs_are_those_of_one_rounded_layer(
    model: str, request: pytest.FixtureRequest, pixels: Tensor, ids: Tensor
) -> None:
    clip = fold_batchnorm(request.getfixturevalue(model))
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    schemes = schemes_of(clip)
    costs = sensitivities(clip, schemes, pixels, ids, Calibrate())
    assert all(torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())
    assert set(costs) == {layer for layer in schemes[4].weights if layer not in (
        "image.patch_embedding", "image.stem.conv1", "text.token_embedding"
    )}  # fmt: skip
    assert sum(c[4] for c in costs.values()) > 20 * sum(c[8] for c in costs.values())
    layer = "image.blocks.1.mlp.fc2" if model == "tiny_clip" else "image.layer3.0.conv2"
    weight = clip.get_parameter(f"{layer}.weight")
    scale = pair_safe_span(weight).reshape(-1, *[1] * (weight.ndim - 1)) / 127
    z = clip.encode_image(pixels)
    plain, weight.data = weight.data, (weight / scale).round() * scale
    changed = clip.encode_image(pixels)
    weight.data = plain
    expected = float((changed - z).square().sum() / (z - z.mean(dim=0)).square().sum())
    assert costs[layer][8] == pytest.approx(expected, rel=1e-3)

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d4c import calibrate, package, reconstruct
from d4c.artifact import Work
from d4c.images import ImageSet
from d4c.models import Clip, QuantizedClip, sites_of, wrap
from d4c.models.folding import fold_batchnorm
from d4c.models.parts import TowerName, tower_parts
from d4c.quantizers.functional import quantize
from d4c.quantizers.pair_safe import is_pair_safe
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import Calibrate, Recipe, Reconstruct, Rule, load_recipe
from d4c.reconstruct import UnitReport, towers
from d4c.reconstruct.learn import starting_weight
from d4c.reconstruct.solve import RIDGES, STEPS
from d4c.reconstruct.towers import OTHER_TOKENS
from d4c.reconstruct.units import units_of

SHORT = Reconstruct(method="adaround", iterations=3, batch=4)


def pictures(num: int, seed: int) -> ImageSet:
    coarse = torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return ImageSet.unlabelled(torch.nn.functional.interpolate(coarse, size=32, mode="bilinear"), "p")


class Case:
    """A float model, its wrapped counterpart, and all that `run` needs."""

    def __init__(
        self, clip: Clip, ids: Tensor, recipe: str | Recipe = "w4a8", images: int = 6, fold: bool = True
    ) -> None:
        self.clip = fold_batchnorm(clip) if fold else clip
        scheme = resolve_scheme(load_recipe(recipe, []) if isinstance(recipe, str) else recipe, sites_of(self.clip))
        self.images, self.held, self.ids, self.held_ids = pictures(images, 1), pictures(4, 2), ids[:4], ids[4:]
        ranges = calibrate.run(self.clip, self.images, self.ids, scheme, Calibrate(range="minmax"))
        self.quantized = wrap(self.clip, scheme, ranges)

    def run(self, config: Reconstruct, work: Work | None = None) -> tuple[QuantizedClip, list[UnitReport]]:
        return reconstruct.run(
            self.clip, self.quantized, self.images, self.ids, self.held, self.held_ids, config, seed=3, work=work
        )


@pytest.fixture(params=["tiny_clip", "tiny_resnet"])
def case(request: pytest.FixtureRequest, ids: Tensor) -> Case:
    return Case(request.getfixturevalue(request.param), ids)


def assert_same(first: Clip, second: Clip) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_learning_helps_on_inputs_that_were_not_fitted(tiny_clip: Clip, ids: Tensor) -> None:
    rules = (Rule("*", weight_bits=3, activation_bits=8),)
    case = Case(tiny_clip, ids, Recipe("w3a8", rules=rules), images=32)
    quantized, reports = case.run(Reconstruct(method="adaround", iterations=150))
    assert sum(r.learned_error / r.nearest_error for r in reports) / len(reports) < 0.9
    assert all(r.codes_changed > 0.02 for r in reports)  # not round-to-nearest in disguise
    reference, before, after = (c.encode_image(case.held.pixels) for c in (case.clip, case.quantized, quantized))
    assert (after - reference).norm() < 0.9 * (before - reference).norm()


def test_the_gate_keeps_every_unit_that_would_become_worse_at_nearest(case: Case) -> None:
    ruinous = Reconstruct(method="adaround", iterations=3, image_scale_learning_rate=1e3, text_scale_learning_rate=1e3)
    quantized, reports = case.run(ruinous)
    assert not any(r.kept for r in reports)
    assert all(r.learned_error > r.nearest_error for r in reports)
    assert_same(quantized, case.quantized)


def outputs(clip: Clip, name: str, pixels: Tensor, ids: Tensor) -> Tensor:
    """What the modules of a unit put out in the whole model, [value, channel]; live tokens alone."""
    first, *others = name.split("+")
    seen: list[Tensor] = []
    names = [first, *(f"{first.rpartition('.')[0]}.{other}" for other in others)]
    handles = [clip.get_submodule(n).register_forward_hook(lambda _, __, y: seen.append(y)) for n in names]
    clip(pixels, ids)
    for handle in handles:
        handle.remove()
    y = torch.cat([y.movedim(1, -1) if y.ndim == 4 else y for y in seen], dim=-1)
    if name.startswith("text") and y.ndim == 3:
        y = y[torch.arange(y.shape[1]) <= ids.argmax(dim=-1, keepdim=True)]
    return y.flatten(0, -2)


def test_errors_are_those_of_the_whole_models_on_held_out_samples(case: Case) -> None:
    # Nothing is kept, so every unit's input comes from a model rounded to nearest, all the way down.
    _, reports = case.run(
        Reconstruct(method="adaround", iterations=1, image_scale_learning_rate=1e3, text_scale_learning_rate=1e3)
    )
    for report in reports:
        found, expected = (
            outputs(c, report.name, case.held.pixels, case.held_ids) for c in (case.quantized, case.clip)
        )
        assert report.nearest_error == pytest.approx((found - expected).square().sum(dim=1).mean().item(), rel=1e-3)


def test_a_unit_is_kept_only_where_it_is_no_worse(case: Case) -> None:
    quantized, reports = case.run(
        Reconstruct(method="adaround", iterations=20, batch=2)
    )  # overfits some units and not others
    assert {r.kept for r in reports} == {True, False}
    before = case.quantized.quantized_weights()
    layers = quantized.quantized_weights()
    for report in reports:
        assert report.kept == (report.learned_error <= report.nearest_error)
        first = report.name.partition("+")[0]
        if not report.kept and first in layers:
            assert torch.equal(layers[first].values, before[first].values)


@pytest.mark.parametrize(("recipe", "unit"), [("w8a8", "auto"), ("w4a8", "layer"), ("w4a4", "block")])
def test_inputs_are_left_alone_and_pairs_stay_safe(recipe: str, unit: str, tiny_resnet: Clip, ids: Tensor) -> None:
    case = Case(tiny_resnet, ids, recipe)
    before = copy.deepcopy((case.clip, case.quantized))
    quantized, _ = case.run(Reconstruct(method="adaround", iterations=3, batch=4, unit=unit))  # type: ignore[arg-type]
    assert_same(case.clip, before[0])
    assert_same(case.quantized, before[1])
    for layer, weight in quantized.quantized_weights().items():
        codes = weight.codes()  # raises where a value left its grid
        assert not case.quantized.scheme.weights[layer].pair_safe or is_pair_safe(codes)
        assert torch.equal(weight.scale, case.quantized.quantized_weights()[layer].scale)


class Crash(BaseException):
    """Like a kill: nothing catches it."""


def test_a_run_killed_in_every_unit_in_turn_ends_the_same(case: Case, tmp_path: Path) -> None:
    whole, reports = case.run(SHORT)
    steps: list[int] = []
    for unit in range(len(reports) + 1):

        def crash(_: str, done: int, __: int, last: int = unit * SHORT.iterations + 2) -> None:
            steps.append(done)
            if done == last:
                raise Crash

        if unit < len(reports):
            with pytest.raises(Crash):
                case.run(SHORT, Work(tmp_path, crash))
    resumed, again = case.run(SHORT, Work(tmp_path, crash))
    assert_same(resumed, whole)
    assert again == reports
    # Of its 3 steps each unit does 2 before it is killed and all 3 in the next run, and none when it is finished.
    done = [unit * 3 + step for unit in range(len(reports)) for step in (1, 2, 1, 2, 3)]
    assert steps == done


def test_what_stands_behind_the_end_token_changes_nothing(tiny_clip: Clip, ids: Tensor) -> None:
    case = Case(tiny_clip, ids)
    first, _ = case.run(SHORT)
    for name in ("ids", "held_ids"):
        rows = getattr(case, name)
        after_end = torch.arange(rows.shape[1]) > rows.argmax(dim=-1, keepdim=True)
        setattr(case, name, rows + 1000 * after_end)
    second, _ = case.run(SHORT)
    assert_same(first, second)


def test_the_summary_by_hand() -> None:
    reports = [
        UnitReport("a", 4, 2.0, 1.0, 0.1, kept=True),  # ratio 1 / 2
        UnitReport("b", 4, 2.0, 3.0, 0.3, kept=False),  # rejected: stays as it was, 1
        UnitReport("c", 8, 0.0, 0.0, 0.0, kept=True),  # nothing to gain: 1
    ]
    summary = reconstruct.summarize(reports)
    assert summary["by_weight_bits"]["4"] == pytest.approx(
        {"units": 2, "error_ratio": 0.75, "codes_changed": 0.2, "rejected": 1}
    )
    assert summary["by_weight_bits"]["8"]["error_ratio"] == 1
    assert [unit["name"] for unit in summary["units"]] == ["a", "b", "c"]


@pytest.mark.parametrize(("tower", "other"), [("image", "text"), ("text", "image")])
def test_a_tower_alone_is_what_it_is_beside_the_other(case: Case, tower: TowerName, other: TowerName) -> None:
    both, _ = case.run(SHORT)
    alone, reports = reconstruct.run(
        case.clip, case.quantized, case.images, case.ids, case.held, case.held_ids, SHORT, seed=3, towers=[tower]
    )
    assert_same_tower(alone, both, tower)
    assert_same_tower(alone, case.quantized, other)
    assert {r.name.partition(".")[0] for r in reports} == {tower}


def assert_same_tower(first: Clip, second: Clip, tower: str) -> None:
    one, two = first.get_submodule(tower).state_dict(), second.get_submodule(tower).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_without_a_gate_every_learned_rounding_stays(tiny_clip: Clip, ids: Tensor) -> None:
    case = Case(tiny_clip, ids, images=2)
    harsh = Reconstruct(
        method="adaround", iterations=20, batch=1, rounding_weight=100.0
    )  # decides long before it has learned
    gated, free = case.run(harsh)[1], case.run(dataclasses.replace(harsh, gate=False))[1]
    assert any(not report.kept for report in gated)
    assert all(report.kept for report in free)


def test_the_paper_learns_layers_of_transformers_and_blocks_of_resnets(
    tiny_clip: Clip, tiny_resnet: Clip, ids: Tensor
) -> None:
    per_block = ["attention.q", "attention.k", "attention.v", "attention.out", "mlp.fc1", "mlp.fc2"]
    text = [f"text.blocks.{i}.{layer}" for i in range(2) for layer in per_block]
    image = [f"image.blocks.{i}.{layer}" for i in range(2) for layer in per_block]
    config = dataclasses.replace(load_recipe("paper-w4a8").reconstruct, iterations=1)
    assert [r.name for r in Case(tiny_clip, ids, "paper-w4a8").run(config)[1]] == [*image, *text]
    blocks = [f"image.layer{i}.0" for i in (1, 2, 3, 4)] + [f"image.pool.{layer}" for layer in ("q", "k", "v", "out")]
    resnet = Case(tiny_resnet, ids, "paper-w4a8", fold=False)
    assert [r.name for r in resnet.run(config)[1]] == [*blocks, *text]


def test_padding_counts_only_where_the_recipe_says_so(tiny_clip: Clip, ids: Tensor) -> None:
    case, units = Case(tiny_clip, ids, "paper-w4a8"), []
    after_end = torch.arange(ids.shape[1]) > ids.argmax(dim=-1, keepdim=True)
    for texts in (ids, torch.where(after_end, 1000, ids)):
        for padding in (False, True):
            quantized, _ = reconstruct.run(
                case.clip, case.quantized, case.images, texts[:4], case.held, texts[4:], SHORT, padding=padding,
                towers=["text"],
            )  # fmt: skip
            units.append(quantized.get_submodule("text.blocks.0.mlp.fc1").weight.values)
    assert torch.equal(units[0], units[2])
    assert not torch.equal(units[1], units[3])


CLOSED = Reconstruct(method="closed_form")


@pytest.mark.parametrize("bits", [3, 8])
def test_the_closed_form_helps_on_inputs_that_were_not_fitted(
    bits: int, request: pytest.FixtureRequest, ids: Tensor
) -> None:
    rules = (Rule("*", weight_bits=bits, activation_bits=8),)
    for model in ("tiny_clip", "tiny_resnet"):
        case = Case(request.getfixturevalue(model), ids, Recipe("short", rules=rules), images=48)
        quantized, reports = case.run(CLOSED)
        assert sum(r.learned_error / r.nearest_error for r in reports) / len(reports) < (0.7 if bits == 3 else 1.0)
        reference, before, after = (c.encode_image(case.held.pixels) for c in (case.clip, case.quantized, quantized))
        assert (after - reference).norm() < (0.9 if bits == 3 else 1.1) * (before - reference).norm()


def test_errors_of_the_closed_form_are_those_of_the_whole_models_on_held_out_samples(case: Case) -> None:
    quantized, reports = case.run(dataclasses.replace(CLOSED, gate=False))
    last = {part: max(i for i, r in enumerate(reports) if r.name.startswith(part)) for part in ("image", "text")}
    for tower, index in last.items():
        report = reports[index]  # nothing behind it changes what it reads
        found, expected = (outputs(c, report.name, case.held.pixels, case.held_ids) for c in (quantized, case.clip))
        error = (found - expected).square().sum(dim=1).mean().item()
        assert report.learned_error == pytest.approx(error, rel=1e-3), tower


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w4a4", "w8"])
def test_the_closed_form_leaves_its_inputs_alone_and_pairs_safe(recipe: str, case: Case, ids: Tensor) -> None:
    case = Case(case.clip, ids, recipe, fold=False)
    before = copy.deepcopy((case.clip, case.quantized))
    quantized, reports = case.run(CLOSED)
    assert_same(case.clip, before[0])
    assert_same(case.quantized, before[1])
    for layer, weight in quantized.quantized_weights().items():
        codes = weight.codes()  # raises where a value left its grid
        assert not case.quantized.scheme.weights[layer].pair_safe or is_pair_safe(codes)
    assert all(r.ridge in RIDGES and r.step in STEPS for r in reports)
    if load_recipe(recipe, []).deployable:
        package.freeze(quantized, load_recipe(recipe, []))  # every bias fits


def test_a_closed_form_killed_in_every_unit_in_turn_ends_the_same(case: Case, tmp_path: Path) -> None:
    whole, reports = case.run(CLOSED)
    for unit in range(len(reports)):

        def crash(_: str, done: int, __: int, last: int = unit + 1) -> None:
            if done == last:
                raise Crash

        with pytest.raises(Crash):
            case.run(CLOSED, Work(tmp_path, crash))
    resumed, again = case.run(CLOSED, Work(tmp_path))
    assert_same(resumed, whole)
    assert again == reports


def test_a_unit_that_the_closed_form_would_spoil_stays_at_nearest(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    original = towers.solve_unit

    def spoilt(*arguments: Any, **named: Any) -> Any:
        solution = original(*arguments, **named)
        return dataclasses.replace(solution, error=2 * solution.nearest_error)

    monkeypatch.setattr(towers, "solve_unit", spoilt)
    quantized, reports = case.run(CLOSED)
    assert not any(r.kept for r in reports)
    assert_same(quantized, case.quantized)


@pytest.mark.parametrize(("recipe", "together"), [("w4a8", ["q+k+v"]), ("w4a4", ["k", "v"])])
def test_behind_the_last_keys_and_values_the_pooled_token_counts_most(
    recipe: str, together: list[str], tiny_clip: Clip, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tiny_clip, ids, recipe)
    weights: dict[str, Tensor | None] = {}
    original = towers.Place.batch

    def look(place: towers.Place, number: int) -> Any:
        batch = original(place, number)
        if number == 0:  # fitted, not held out
            weights[place.unit.name] = batch.token_weight
        return batch

    monkeypatch.setattr(towers.Place, "batch", look)
    case.run(CLOSED)
    for name in together:
        assert weights[f"image.blocks.1.attention.{name}"] is None
        live = weights[f"text.blocks.1.attention.{name}"]
        assert live is not None
        assert set(live.unique().tolist()) <= {0.0, 1.0}  # the ends of texts, and padding
    assert weights["image.blocks.0.mlp.fc1"] is None
    assert weights["image.blocks.0.attention." + ("q+k+v" if "q+k+v" in together else "q")] is None
    pooled_alone = ["image.blocks.1.attention.q"] if "k" in together else []
    for name in (*pooled_alone, "image.blocks.1.attention.out", "image.blocks.1.mlp.fc2", "text.blocks.1.mlp.fc1"):
        weight = weights[name]
        assert weight is not None
        torch.testing.assert_close(weight.amax(dim=1), torch.ones(len(weight)))
        torch.testing.assert_close(weight.sum(dim=1), torch.full((len(weight),), 1.0 + OTHER_TOKENS), atol=0.1, rtol=0)
        if name.startswith("text"):
            assert torch.equal(weight > 0, live > 0)
            assert torch.equal(weight.argmax(dim=1), ids[: len(weight)].argmax(dim=1))


@pytest.mark.parametrize("granularity", ["channel", "token"])
def test_the_closed_form_takes_inputs_with_a_scale_for_each_channel_or_token(
    granularity: str, tiny_clip: Clip, ids: Tensor
) -> None:
    fine = Rule("*.blocks.*.mlp.input", activation_granularity=granularity)  # type: ignore[arg-type]
    rules = (Rule("*", weight_bits=4, activation_bits=8), fine)
    _, reports = Case(tiny_clip, ids, Recipe("fine", rules=rules)).run(CLOSED)
    found = next(r for r in reports if r.name == "text.blocks.1.mlp.fc1")
    assert found.learned_error <= found.nearest_error


def test_learning_may_start_from_the_closed_form_and_is_kept_only_where_it_is_better(
    tiny_clip: Clip, ids: Tensor
) -> None:
    case = Case(tiny_clip, ids, Recipe("w2a8", rules=(Rule("*", weight_bits=2, activation_bits=8),)), images=32)
    solved, first = case.run(CLOSED)
    still, reports = case.run(
        dataclasses.replace(SHORT, start="closed_form", image_scale_learning_rate=1e3, text_scale_learning_rate=1e3)
    )
    assert not any(r.kept for r in reports)  # ruined by its scales, so that the start stays
    assert_same(still, solved)
    learned, reports = case.run(Reconstruct(method="adaround", iterations=60, start="closed_form"))
    assert {r.kept for r in reports} == {True, False}
    names = [r.name for r in first]
    for report in reports:  # errors of rounding to nearest are those that the closed form reports
        if report.name in names[:1]:
            expected = next(r for r in first if r.name == report.name).nearest_error
            assert report.nearest_error == pytest.approx(expected, rel=1e-3)
    for layer, weight in learned.quantized_weights().items():
        torch.testing.assert_close(weight.scale, solved.quantized_weights()[layer].scale)


def test_a_weight_that_is_learned_from_other_codes_rounds_to_these(tiny_clip: Clip, ids: Tensor) -> None:
    case = Case(tiny_clip, ids, "w4a4")
    quantized, _ = case.run(CLOSED)
    for model, moved in ((case.quantized, False), (quantized, True)):
        for part in tower_parts(model, "image"):
            for unit in units_of(part, model, case.clip, "layer"):
                for site in unit.weights:
                    weight, held = starting_weight(unit, site), unit.grid_weight(site)
                    codes = quantize(weight, held.scale, held.zero_point, held.grid)
                    assert torch.equal(codes, held.codes())
                    assert moved or torch.equal(weight, unit.float_weight(site))


@pytest.mark.parametrize(("model", "layer"), [
    ("tiny_clip", "image.blocks.0.mlp.fc1"), ("tiny_resnet", "image.layer1.0.conv1"),
])  # fmt: skip
def test_a_row_without_weights_keeps_a_scale_that_its_bias_fits(
    model: str, layer: str, request: pytest.FixtureRequest, ids: Tensor
) -> None:
    clip = fold_batchnorm(copy.deepcopy(request.getfixturevalue(model)))
    module = clip.get_submodule(layer)
    module.weight.data[2] = 0  # type: ignore[index, union-attr]
    module.bias.data[2] = 0.1234567  # type: ignore[index, union-attr]
    case = Case(clip, ids, "w8a8")
    quantized, _ = case.run(dataclasses.replace(CLOSED, gate=False))
    arrays, _ = package.freeze(quantized, load_recipe("w8a8", []))
    source = quantized.get_submodule(sites_of(clip).inputs[layer])
    unit = float(source.scale) * arrays[f"{layer}.weight_scale"][2]  # type: ignore[arg-type]
    assert not arrays[f"{layer}.weight"][2].any()
    assert arrays[f"{layer}.bias"][2] * unit == pytest.approx(0.1234567, rel=1e-5)

import dataclasses

import pytest

from d4c.errors import RecipeError
from d4c.quantizers.grids import IntegerGrid, PerChannel, PerTensor, PerToken, TensorFormat
from d4c.quantizers.scheme import Sites, resolve_scheme
from d4c.recipes import Recipe, Rule

SITES = Sites(
    layers=("table", "a.q", "a.k", "b.fc"),
    embeddings=frozenset({"table"}),
    tensors=("a.input", "a.q_out", "b.input"),
    attention_factors=frozenset({"a.q_out"}),
    inputs={"a.q": "a.input", "a.k": "a.input", "b.fc": "b.input"},
)
W8A8 = Rule("*", weight_bits=8, activation_bits=8)


def signed(num_bits: int, pair_safe: bool = False) -> TensorFormat:
    return TensorFormat(IntegerGrid(num_bits, symmetric=True), PerChannel(0), pair_safe)


def unsigned(num_bits: int) -> TensorFormat:
    return TensorFormat(IntegerGrid(num_bits, symmetric=False), PerTensor())


def test_later_rules_win_key_by_key_and_32_bits_stay_float() -> None:
    rules = (W8A8, Rule("a.*", weight_bits=4), Rule("*.k", weight_bits=32), Rule("b.*", activation_bits=6))
    scheme = resolve_scheme(Recipe("r", rules=rules), SITES)
    assert scheme.weights == {"table": signed(8), "a.q": signed(4), "b.fc": signed(8)}
    assert scheme.tensors == {"a.input": unsigned(8), "b.input": unsigned(6)}
    assert scheme.inputs == {}


def test_deployable_8_bit_weights_are_pair_safe_and_tables_and_4_bits_need_not_be() -> None:
    scheme = resolve_scheme(Recipe("r", deployable=True, rules=(W8A8, Rule("b.*", weight_bits=4))), SITES)
    assert scheme.weights == {
        "table": signed(8), "a.q": signed(8, pair_safe=True), "a.k": signed(8, pair_safe=True), "b.fc": signed(4),
    }  # fmt: skip


@pytest.mark.parametrize(("attention", "num_bits"), [("float", None), ("int8", 8), ("rules", 6)])
def test_attention_factors_have_their_own_switch(attention: str, num_bits: int | None) -> None:
    rules = (Rule("*", weight_bits=8, activation_bits=6),)
    scheme = resolve_scheme(Recipe("r", attention=attention, rules=rules), SITES)  # type: ignore[arg-type]
    assert scheme.tensors.get("a.q_out") == (num_bits and unsigned(num_bits))


def test_inputs_are_quantized_layer_by_layer_with_their_granularity() -> None:
    rules = (
        W8A8,
        Rule("a.q", activation_granularity="channel"),
        Rule("b.*", activation_granularity="token", activation_bits=4),
    )
    scheme = resolve_scheme(
        Recipe("r", placement="inputs", attention="int8", activation_symmetric=True, rules=rules), SITES
    )
    grid = IntegerGrid(8, symmetric=True)
    assert scheme.inputs == {
        "a.q": TensorFormat(grid, PerChannel(-1)),
        "a.k": TensorFormat(grid, PerTensor()),
        "b.fc": TensorFormat(IntegerGrid(4, symmetric=True), PerToken()),
    }
    assert list(scheme.tensors) == ["a.q_out"]


def test_no_rules_quantize_nothing() -> None:
    scheme = resolve_scheme(Recipe("r"), SITES)
    assert (scheme.weights, scheme.tensors, scheme.inputs) == ({}, {}, {})


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule("b.fc", weight_bits=32), "b.fc has float weights but its input b.input is integer"),
        (Rule("b.input", activation_bits=32), "b.fc has integer weights but its input b.input is float"),
    ],
)
def test_a_deployable_recipe_that_no_kernel_computes_is_refused(rule: Rule, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        resolve_scheme(Recipe("r", deployable=True, rules=(W8A8, rule)), SITES)


def test_a_deployable_recipe_leaves_no_tensor_without_a_quantizer() -> None:
    sites = Sites(SITES.layers, SITES.embeddings, (*SITES.tensors, "b.sum"), SITES.attention_factors, SITES.inputs)
    with pytest.raises(RecipeError, match=r"b\.sum is float"):
        resolve_scheme(Recipe("r", deployable=True, rules=(W8A8, Rule("b.sum", activation_bits=32))), sites)


def test_quantized_inputs_in_front_of_float_weights_are_refused() -> None:
    rules = (W8A8, Rule("a.k", weight_bits=32))
    with pytest.raises(RecipeError, match=r"a\.k has float weights"):
        resolve_scheme(Recipe("r", placement="inputs", rules=rules), SITES)


@pytest.mark.parametrize(("placement", "site"), [("inputs", "b.fc"), ("tensors", "b.input")])
@pytest.mark.parametrize("granularity", ["channel", "token"])
def test_a_convolution_reads_one_scale(placement: str, site: str, granularity: str) -> None:
    sites = dataclasses.replace(SITES, convolutions=frozenset({"b.fc"}))
    fine = Rule("a.*", activation_granularity=granularity)  # type: ignore[arg-type]
    wrong = Rule(site, activation_granularity=granularity)  # type: ignore[arg-type]
    resolve_scheme(Recipe("r", placement=placement, rules=(W8A8, fine)), sites)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=f"{site} has a scale for each {granularity}, but b.fc is a convolution"):
        resolve_scheme(Recipe("r", placement=placement, rules=(W8A8, wrong)), sites)  # type: ignore[arg-type]
    free = Rule(site, activation_bits=32, weight_bits=32)
    resolve_scheme(Recipe("r", placement=placement, rules=(W8A8, wrong, free)), sites)  # type: ignore[arg-type]

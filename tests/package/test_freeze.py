"""Frozen codes against integer arithmetic that knows only what lies in the files."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from d4c import calibrate
from d4c.artifact import Artifact
from d4c.artifact.folder import WEIGHTS_METADATA
from d4c.errors import CalibrationError
from d4c.images import ImageSet
from d4c.models import Clip, QuantizedClip, sites_of, wrap
from d4c.models.folding import fold_batchnorm
from d4c.package import freeze, stored_bytes, thaw
from d4c.quantizers.scheme import resolve_scheme
from d4c.recipes import Calibrate, Recipe, Rule, load_recipe

Array = NDArray[Any]
Arrays = Mapping[str, Array]
INTEGERS = ["w8a8", "w4a8", "w6a6"]
KINDS = {  # a layer of each kind
    "vit": ("image.patch_embedding", "image.blocks.1.mlp.fc2", "image.projection", "text.blocks.0.attention.q"),
    "resnet": ("image.stem.conv1", "image.layer2.0.conv2", "image.layer2.0.shortcut.conv", "image.pool.q",
                    "image.pool.k", "image.pool.v", "image.pool.out", "text.projection"),
}  # fmt: skip


def wrapped(clip: Clip, recipe: Recipe, pixels: Tensor, ids: Tensor) -> QuantizedClip:
    folded = fold_batchnorm(clip)
    scheme = resolve_scheme(recipe, sites_of(folded))
    images = ImageSet.unlabelled(pixels, "p")
    return wrap(folded, scheme, calibrate.run(folded, images, ids, scheme, Calibrate(range="minmax")))


def artifact_of(quantized: QuantizedClip, recipe: Recipe) -> Artifact:
    arrays, config = freeze(quantized, recipe)
    manifest = {"source": quantized.source, "fingerprint": quantized.fingerprint}
    return Artifact(Path("out"), arrays, config, "", manifest, quantized.preprocess, quantized.tokenizer)


@pytest.fixture(scope="module")
def frozen(request: pytest.FixtureRequest, pixels: Tensor, tokens: Tensor) -> Callable[[str, str], Artifact]:
    """An artifact of a model by its fixture's name and a recipe's; tests must not change it."""
    made: dict[tuple[str, str], Artifact] = {}

    def make(kind: str, name: str) -> Artifact:
        if (kind, name) not in made:
            recipe = load_recipe(name)
            made[kind, name] = artifact_of(wrapped(request.getfixturevalue(kind), recipe, pixels, tokens), recipe)
        return made[kind, name]

    return make


Frozen = Callable[[str, str], Artifact]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "recipe", [*map(load_recipe, (*INTEGERS, "w8", "w4")), replace(load_recipe("w8"), weight_symmetric=False)]
)
def test_the_size_is_foreseen_to_the_byte(
    kind: str, recipe: Recipe, request: pytest.FixtureRequest, pixels: Tensor, tokens: Tensor
) -> None:
    quantized = wrapped(request.getfixturevalue(kind), recipe, pixels, tokens)
    arrays, _ = freeze(quantized, recipe)
    foreseen = stored_bytes(fold_batchnorm(request.getfixturevalue(kind)), quantized.scheme)
    assert foreseen == len(save(arrays, WEIGHTS_METADATA))


# The reference: int64 throughout, from the arrays and config.json alone.


def weight_codes(artifact: Artifact, layer: str) -> Array:
    """Signed codes, [out, ..] int64; nibbles are read low one first."""
    about, stored = artifact.quantization["weights"][layer], artifact.arrays[f"{layer}.weight"]
    if about["packed"]:
        nibbles = np.array([[byte & 15, byte >> 4] for byte in stored.tolist()]).reshape(-1)
        stored = np.where(nibbles >= 8, nibbles - 16, nibbles)[: int(np.prod(about["shape"]))]
    return stored.reshape(about["shape"]).astype(np.int64)


def tensor_codes(artifact: Artifact, site: str, x: Array) -> Array:
    """ONNX QuantizeLinear in float32, as int64."""
    scale, zero_point = artifact.arrays[f"{site}.scale"], artifact.arrays[f"{site}.zero_point"]
    codes = np.rint(x / scale) + zero_point
    return np.clip(codes, 0, 2 ** artifact.quantization["tensors"][site]["bits"] - 1).astype(np.int64)


def accumulators(artifact: Artifact, layer: str, centred: Array) -> Array:
    """sum (q_a - z_a) q_w + bias, int64; `centred` is q_a - z_a."""
    w, bias = weight_codes(artifact, layer), artifact.arrays.get(f"{layer}.bias")
    bias = np.zeros(len(w), np.int64) if bias is None else bias.astype(np.int64)
    if w.ndim == 2:
        return centred @ w.T + bias
    kernel = w.shape[-1]
    stride = {"image.patch_embedding": kernel, "image.stem.conv1": 2}.get(layer, 1)
    padding = kernel // 2 if stride < kernel else 0  # patches do not overlap
    centred = np.pad(centred, ((0, 0), (0, 0), (padding, padding), (padding, padding)))  # q = z outside
    windows = sliding_window_view(centred, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, w) + bias[:, None, None]


def output_scale(artifact: Artifact, layer: str, site: str, ndim: int) -> Array:
    """s_a s_w, float64 [out] or [out, 1, 1]."""
    scale = artifact.arrays[f"{layer}.weight_scale"].astype(np.float64) * float(artifact.arrays[f"{site}.scale"][0])
    return scale[:, None, None] if ndim == 4 else scale


class Seen:
    """What goes into every tensor site and comes out of every layer of a model in one forward."""

    def __init__(self, model: QuantizedClip, pixels: Tensor, ids: Tensor) -> None:
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Tensor] = {}
        handles = []
        for name in model.scheme.tensors:
            handles.append(model.get_submodule(name).register_forward_pre_hook(
                lambda _, x, name=name: self.inputs.__setitem__(name, x[0].numpy())
            ))  # fmt: skip
        for name in model.scheme.weights:
            handles.append(model.get_submodule(name).register_forward_hook(
                lambda _, __, y, name=name: self.outputs.__setitem__(name, y)
            ))  # fmt: skip
        with torch.no_grad():
            model(pixels, ids)
        for handle in handles:
            handle.remove()


def assert_computes_as_integers(artifact: Artifact, pixels: Tensor, ids: Tensor) -> set[str]:
    """Every layer of the thawed model, on what reaches it there; returns the layers compared."""
    model = thaw(artifact)
    seen, sites = Seen(model, pixels, ids), sites_of(model).inputs
    for layer, site in sites.items():
        x = seen.inputs[site]
        codes = tensor_codes(artifact, site, x)
        centred = codes - int(artifact.arrays[f"{site}.zero_point"][0])
        acc = accumulators(artifact, layer, centred)
        scale = output_scale(artifact, layer, site, x.ndim)
        expected = acc * scale
        found = seen.outputs[layer].numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), layer  # float32 sums
        double = copy.deepcopy(model.get_submodule(layer)).double()
        steps = double(model.get_submodule(site)(torch.from_numpy(x)).double()).numpy() / scale
        np.testing.assert_array_equal(np.rint(steps), acc, err_msg=layer)
        assert np.abs(steps - acc).max() < 0.1, layer  # so that rounding decides nothing
    return {*sites}


@pytest.mark.parametrize("recipe", INTEGERS)
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_every_layer_computes_what_integers_compute(
    kind: str, recipe: str, frozen: Frozen, pixels: Tensor, tokens: Tensor
) -> None:
    artifact = frozen(kind, recipe)
    louder = 1.5 * pixels  # beyond what was calibrated on, so that codes are clipped
    compared = assert_computes_as_integers(artifact, louder, tokens.flip(0))
    assert set(KINDS[kind]) <= compared
    assert compared == set(artifact.quantization["weights"]) - {"text.token_embedding"}


@pytest.mark.parametrize("recipe", INTEGERS)
def test_an_embedding_is_its_codes_times_the_rows_scale(recipe: str, frozen: Frozen, tokens: Tensor) -> None:
    artifact = frozen("vit", recipe)
    codes, scale = (artifact.arrays[f"text.token_embedding.{n}"] for n in ("weight", "weight_scale"))
    assert (codes.dtype, codes.shape, scale.shape) == (np.int8, (100, 32), (100,))
    found = thaw(artifact).text.token_embedding(tokens).numpy()
    np.testing.assert_array_equal(found, codes[tokens.numpy()].astype(np.float32) * scale[tokens.numpy()][..., None])


@pytest.mark.parametrize("recipe", INTEGERS)
def test_requantizing_accumulators_gives_the_codes_of_the_simulation(
    recipe: str, frozen: Frozen, pixels: Tensor, tokens: Tensor
) -> None:
    # Where only a ReLU lies between a convolution and the next quantizer: q = round(acc s_a s_w / s_out), at least 0.
    artifact = frozen("resnet", recipe)
    model = thaw(artifact)
    seen, sites = Seen(model, pixels, tokens), sites_of(model).inputs
    off = total = 0
    for layer, site in sites.items():
        after = f"{layer}_out"
        if layer.endswith((".conv1", ".conv2")) or layer == "image.stem.conv3":
            centred = tensor_codes(artifact, site, seen.inputs[site]) - int(artifact.arrays[f"{site}.zero_point"][0])
            factor = output_scale(artifact, layer, site, 4) / artifact.arrays[f"{after}.scale"]
            assert artifact.arrays[f"{after}.zero_point"] == 0
            product = accumulators(artifact, layer, centred).astype(np.float32) * factor.astype(np.float32)
            codes = np.clip(np.rint(product), 0, 2 ** artifact.quantization["tensors"][after]["bits"] - 1)
            difference = np.abs(codes - tensor_codes(artifact, after, seen.inputs[after]))
            assert difference.max() <= 1, layer
            off, total = off + int(difference.sum()), total + difference.size
    assert total > 10_000
    assert off <= 1e-4 * total


# What is in the files.


@pytest.mark.parametrize("recipe", INTEGERS)
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_integer_recipes_leave_no_linear_or_convolution_in_float(kind: str, recipe: str, frozen: Frozen) -> None:
    artifact = frozen(kind, recipe)
    matrices = {n for n, a in artifact.arrays.items() if a.dtype == np.float32 and a.ndim > 1}
    positions = {n for n in artifact.arrays if n.endswith("position_embedding")}
    assert matrices == positions != set()
    biases = {n: a.dtype for n, a in artifact.arrays.items() if n.endswith(".bias") and ".norm" not in n}
    assert set(biases.values()) == {np.dtype(np.int32)}
    json.dumps(artifact.config)


def test_the_format_of_a_weight_is_written_down(frozen: Frozen) -> None:
    weights = frozen("resnet", "w4a8").quantization["weights"]
    eight = {"bits": 8, "symmetric": True, "channel_axis": 0, "pair_safe": True, "packed": False}
    assert weights["image.stem.conv1"] == eight | {"shape": [2, 3, 3, 3]}
    four = {"bits": 4, "symmetric": True, "channel_axis": 0, "packed": True}
    assert weights["image.layer1.0.conv2"] == four | {"shape": [4, 4, 3, 3]}
    del eight["pair_safe"]  # no kernel multiplies a table
    assert weights["text.token_embedding"] == eight | {"shape": [100, 32]}


def test_four_bits_lie_two_in_a_byte(vit: Clip, pixels: Tensor, tokens: Tensor) -> None:
    recipe, layer = load_recipe("w4a8"), "text.blocks.0.attention.q"
    quantized = wrapped(vit, recipe, pixels, tokens)
    weight = quantized.quantized_weights()[layer]
    codes = weight.codes()
    codes[0, :6] = torch.tensor([1.0, -2.0, 7.0, -8.0, 0.0, 3.0])
    weight.set_codes(codes)
    stored = freeze(quantized, recipe)[0][f"{layer}.weight"]
    assert (stored.dtype, stored.shape) == (np.uint8, (32 * 32 // 2,))
    # Two's complement, first code in the low nibble: 1, -2 = 1110 -> 1110 0001; 7, -8 -> 1000 0111; 0, 3 -> 0011 0000.
    assert stored[:3].tolist() == [0xE1, 0x87, 0x30]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("recipe", INTEGERS)
def test_biases_and_every_possible_accumulator_fit_32_bits(kind: str, recipe: str, frozen: Frozen) -> None:
    artifact = frozen(kind, recipe)
    for layer, about in artifact.quantization["weights"].items():
        bias = artifact.arrays.get(f"{layer}.bias")
        if bias is not None:
            products = np.abs(weight_codes(artifact, layer)).reshape(about["shape"][0], -1).sum(1) * 255
            assert (products + np.abs(bias.astype(np.int64))).max() < 2**31, layer


def test_a_bias_becomes_the_nearest_whole_number_of_its_unit(vit: Clip, pixels: Tensor, tokens: Tensor) -> None:
    recipe, layer, site = load_recipe("w8a8"), "text.blocks.1.mlp.fc2", "text.blocks.1.mlp.hidden"
    clip = copy.deepcopy(vit)
    clip.get_parameter(f"{layer}.bias").data[3] = -3e8  # widens its scale until it is 2^30 steps
    arrays, _ = freeze(wrapped(clip, recipe, pixels, tokens), recipe)
    unit = arrays[f"{layer}.weight_scale"].astype(np.float64) * arrays[f"{site}.scale"]
    bias, codes = clip.get_parameter(f"{layer}.bias").double().numpy(), arrays[f"{layer}.bias"]
    assert codes.dtype == np.int32
    others = np.arange(len(codes)) != 3
    assert (np.abs(bias / unit - codes)[others] <= 0.5 + 1e-4).all()  # the unit is a float32 product
    assert codes[3] == pytest.approx(-(2**30), rel=1e-6)


@pytest.mark.parametrize("bias", [1e12, torch.inf, torch.nan])
def test_a_bias_that_does_not_fit_is_an_error(bias: float, vit: Clip, pixels: Tensor, tokens: Tensor) -> None:
    recipe = load_recipe("w8a8")
    quantized = wrapped(vit, recipe, pixels, tokens)
    quantized.get_submodule("image.blocks.1.mlp.fc1").bias[0] = bias  # type: ignore[index]
    with pytest.raises(CalibrationError, match=r"image\.blocks\.1\.mlp\.fc1: a bias does not fit 32 bits"):
        freeze(quantized, recipe)


@pytest.mark.parametrize(
    ("layer", "first", "second", "codes", "safe"),
    [
        # A linear's neighbours are columns 2i, 2i + 1.
        ("image.pool.v", (0, 0), (0, 1), (64, 64), True),  # 255 (64 + 64) = 32,640 < 2^15
        ("image.pool.v", (0, 0), (0, 1), (65, 64), False),  # 255 (65 + 64) = 32,895
        ("image.pool.v", (0, 0), (0, 1), (127, -127), True),
        ("image.pool.v", (0, 0), (0, 1), (-65, -64), False),
        ("image.pool.v", (0, 1), (0, 2), (127, 127), True),  # of two pairs
        # A convolution's are channels at one position of the kernel, not positions in one channel.
        ("image.layer1.0.conv2", (0, 0, 0, 0), (0, 0, 0, 1), (127, 127), True),
        ("image.layer1.0.conv2", (0, 0, 1, 1), (0, 1, 1, 1), (127, 127), False),
    ],
)
def test_a_weight_that_would_saturate_a_kernel_is_an_error(
    layer: str, first: tuple[int, ...], second: tuple[int, ...], codes: tuple[int, int], safe: bool,
    resnet: Clip, pixels: Tensor, tokens: Tensor,
) -> None:  # fmt: skip
    recipe = load_recipe("w8a8")
    quantized = wrapped(resnet, recipe, pixels, tokens)
    weight = quantized.quantized_weights()[layer]
    changed = torch.zeros_like(weight.values)
    changed[first], changed[second] = codes
    weight.set_codes(changed)
    if safe:
        stored = freeze(quantized, recipe)[0][f"{layer}.weight"]
        assert (stored[first], stored[second]) == codes
    else:
        with pytest.raises(CalibrationError, match=f"{layer}: 8-bit codes are not pair-safe"):
            freeze(quantized, recipe)


def test_the_bits_beside_eight_and_the_table_need_no_pairs(vit: Clip, pixels: Tensor, tokens: Tensor) -> None:
    recipe = load_recipe("w6a6")
    quantized = wrapped(vit, recipe, pixels, tokens)
    for layer, code in (("text.token_embedding", 127), ("text.blocks.0.attention.q", 31)):
        weight = quantized.quantized_weights()[layer]
        weight.set_codes(torch.full_like(weight.values, code))
    arrays, _ = freeze(quantized, recipe)
    assert arrays["text.token_embedding.weight"].min() == 127


def test_simulations_keep_zero_points_and_float_biases(vit: Clip, pixels: Tensor, tokens: Tensor) -> None:
    rules = (Rule("*", weight_bits=4, activation_bits=8),)
    recipe = Recipe("paper-like", placement="inputs", attention="rules", weight_symmetric=False, rules=rules)
    quantized = wrapped(vit, recipe, pixels, tokens)
    arrays, _ = freeze(quantized, recipe)
    layer = "image.blocks.0.mlp.fc1"
    codes, zero = arrays[f"{layer}.weight"].astype(np.int64), arrays[f"{layer}.weight_zero_point"][:, None]
    assert (codes.min(), codes.max()) == (0, 15)
    weight = vit.get_parameter(f"{layer}.weight").numpy()
    scale = arrays[f"{layer}.weight_scale"][:, None]
    # Half a step, and half more where rounding the zero point moved the ends of the range.
    assert (np.abs((codes - zero) * scale - weight) <= scale * (1 + 1e-5)).all()
    np.testing.assert_array_equal(arrays[f"{layer}.bias"], vit.get_parameter(f"{layer}.bias").numpy())
    assert arrays[f"{layer}.input_scale"].shape == arrays[f"{layer}.input_zero_point"].shape == (1,)
    factors = {n.rpartition(".")[0] for n in arrays if n.endswith("probabilities.scale") or "_out.scale" in n}
    assert len(factors) == 4 * 4  # q, k, v and probabilities of four blocks


def test_freezing_changes_nothing_and_gives_the_same_twice(resnet: Clip, pixels: Tensor, tokens: Tensor) -> None:
    recipe = load_recipe("w4a8")
    quantized = wrapped(resnet, recipe, pixels, tokens)
    before = copy.deepcopy(quantized.state_dict())
    first, second = freeze(quantized, recipe), freeze(quantized, recipe)
    assert all(torch.equal(before[name], tensor) for name, tensor in quantized.state_dict().items())
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    for name, array in first[0].items():
        np.testing.assert_array_equal(array, second[0][name])


# Weights that have no range, channels that are dead, texts of one token.


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_degenerate_models_compute_as_integers_too(
    kind: str, recipe: str, request: pytest.FixtureRequest, pixels: Tensor
) -> None:
    clip = copy.deepcopy(fold_batchnorm(request.getfixturevalue(kind)))  # folding shares what it does not fold
    zero_rows = ["text.blocks.0.attention.q", "text.blocks.1.mlp.fc1"]
    zero_rows += ["image.layer2.0.conv2", "image.pool.v"] if kind == "resnet" else ["image.patch_embedding"]
    for layer in zero_rows:
        clip.get_parameter(f"{layer}.weight").data[1] = 0
    constant = "image.layer3.0.conv1" if kind == "resnet" else "image.blocks.1.attention.v"
    clip.get_parameter(f"{constant}.weight").data.fill_(0.3)
    if kind == "resnet":
        clip.get_parameter("image.layer1.0.conv1.bias").data.fill_(
            -50
        )  # nothing passes its ReLU; float32 still holds its code
    else:
        clip.get_parameter("text.blocks.0.norm2.weight").data.zero_()
        clip.get_parameter("text.blocks.0.norm2.bias").data.zero_()  # the MLP behind it sees zeros alone
    one = torch.tensor([[99] + [0] * 76])  # an end token and nothing else
    resolved = load_recipe(recipe)
    artifact = artifact_of(wrapped(clip, resolved, pixels[:1], one), resolved)
    assert_computes_as_integers(artifact, pixels, one)
    for layer in zero_rows:
        assert not weight_codes(artifact, layer)[1].any()
    dead = "image.layer1.0.conv1_out" if kind == "resnet" else "text.blocks.0.mlp.input"
    assert (artifact.arrays[f"{dead}.scale"], artifact.arrays[f"{dead}.zero_point"]) == (1, 0)
    weight = weight_codes(artifact, constant) * artifact.arrays[f"{constant}.weight_scale"].min()
    assert np.abs(weight - 0.3).max() <= artifact.arrays[f"{constant}.weight_scale"].max() / 2 * 1.001
    model = thaw(artifact)
    assert bool(model.encode_image(pixels).isfinite().all())
    assert bool(model.encode_text(one).isfinite().all())


def test_a_row_without_weights_keeps_its_bias_in_20_bits(resnet: Clip, pixels: Tensor, tokens: Tensor) -> None:
    # BatchNorm with γ = 0 folds to a row of zeros and the bias β: the channel is β everywhere, the code 2^20.
    clip, layer, recipe = fold_batchnorm(resnet), "image.layer2.0.conv2", load_recipe("w8a8")
    clip.get_parameter(f"{layer}.weight").data[1] = 0
    artifact = artifact_of(wrapped(clip, recipe, pixels, tokens), recipe)
    beta = float(clip.get_parameter(f"{layer}.bias")[1])
    found = Seen(thaw(artifact), pixels, tokens).outputs[layer][:, 1].numpy()
    assert not weight_codes(artifact, layer)[1].any()
    assert abs(artifact.arrays[f"{layer}.bias"][1]) == 2**20
    assert found.min() == found.max() == pytest.approx(beta, rel=1e-6)

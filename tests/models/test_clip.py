import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from d4c.artifact.architecture import ClipConfig
from d4c.errors import ModelFileError
from d4c.models import Clip, TorchEncoder
from d4c.models.clip import build_towers, clip_from_state, fingerprint_of


@pytest.fixture(params=["tiny_clip", "tiny_resnet"])
def clip(request: pytest.FixtureRequest) -> Clip:
    return request.getfixturevalue(request.param)


def state_of(clip: Clip) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in clip.state_dict().items() if "num_batches" not in name}


def rebuilt(clip: Clip, state: dict[str, Tensor]) -> Clip:
    return clip_from_state(clip.config, state, tokenizer=clip.tokenizer, preprocess=clip.preprocess, source="it")


def test_a_clip_is_frozen_and_in_evaluation_mode(clip: Clip) -> None:
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert all(tensor.dtype == torch.float32 for name, tensor in clip.state_dict().items() if "num_batches" not in name)


def test_a_clip_is_rebuilt_from_its_own_state(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    again = rebuilt(clip, state_of(clip))
    assert torch.equal(again.encode_image(pixels), clip.encode_image(pixels))
    assert torch.equal(again.encode_text(ids), clip.encode_text(ids))
    assert again.fingerprint == clip.fingerprint


def test_half_and_double_precision_become_single(tiny_clip: Clip) -> None:
    halves = {name: tensor.half() for name, tensor in state_of(tiny_clip).items()}
    single = rebuilt(tiny_clip, halves)
    assert {tensor.dtype for tensor in single.state_dict().values()} == {torch.float32}
    assert single.fingerprint == rebuilt(tiny_clip, {n: t.double() for n, t in halves.items()}).fingerprint
    assert single.fingerprint != tiny_clip.fingerprint  # rounded weights are others


def test_a_missing_left_over_or_misshapen_parameter_is_named(clip: Clip) -> None:
    state = state_of(clip)
    for name in ("image.projection.weight", "image.pool.q.bias", "text.norm_final.bias", "logit_scale"):
        if name in state:
            with pytest.raises(ModelFileError, match=f"it: parameter {name} is missing"):
                rebuilt(clip, {n: tensor for n, tensor in state.items() if n != name})
    with pytest.raises(ModelFileError, match=r"it: unexpected parameter image\.a and 1 more"):
        rebuilt(clip, state | {"image.b": torch.ones(1), "image.a": torch.ones(1)})
    with pytest.raises(ModelFileError, match=r"text\.norm_final\.bias has shape \[3\], the model needs \[32\]"):
        rebuilt(clip, state | {"text.norm_final.bias": torch.ones(3)})
    with pytest.raises(ModelFileError, match=r"logit_scale has shape \[2\], the model needs \[\]"):
        rebuilt(clip, state | {"logit_scale": torch.ones(2)})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["text.token_embedding.weight", "logit_scale", "logit_bias"])
def test_a_value_that_is_not_finite_is_an_error(name: str, value: float, tiny_clip: Clip) -> None:
    state = state_of(tiny_clip) | {"logit_bias": torch.tensor(0.0)}
    state[name].view(-1)[-1] = value
    with pytest.raises(ModelFileError, match=f"it: {name} holds values that are not finite"):
        rebuilt(tiny_clip, state)


def test_a_logit_scale_of_shape_one_is_a_scalar(tiny_clip: Clip) -> None:
    state = state_of(tiny_clip)
    shaped = rebuilt(
        tiny_clip, state | {"logit_scale": state["logit_scale"][None], "logit_bias": torch.tensor([[-2.0]])}
    )
    assert (shaped.logit_scale.shape, shaped.logit_bias.shape) == ((), ())  # type: ignore[union-attr]
    assert shaped.logit_scale == tiny_clip.logit_scale


def test_logits_are_scaled_cosines_plus_bias(tiny_clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    scalars = {"logit_scale": torch.tensor(math.log(10.0)), "logit_bias": torch.tensor(-3.0)}
    biased = rebuilt(tiny_clip, state_of(tiny_clip) | scalars)
    images, texts = biased.encode_image(pixels), biased.encode_text(ids)
    cosines = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)  # [image, text]
    torch.testing.assert_close(biased(pixels, ids), 10 * cosines - 3)
    plain = rebuilt(tiny_clip, state_of(tiny_clip) | {"logit_scale": scalars["logit_scale"]})
    torch.testing.assert_close(plain(pixels, ids), 10 * cosines)


def test_normalized_embeddings_have_the_same_direction_and_length_one(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    for plain, unit in (
        (clip.encode_image(pixels), clip.encode_image(pixels, normalize=True)),
        (clip.encode_text(ids), clip.encode_text(ids, normalize=True)),
    ):
        torch.testing.assert_close(unit, plain / plain.norm(dim=1, keepdim=True))


def test_towers_are_built_without_memory(clip: Clip) -> None:
    image, text = build_towers(clip.config)
    built = {**image.state_dict(prefix="image."), **text.state_dict(prefix="text.")}
    assert {tensor.device.type for tensor in built.values()} == {"meta"}
    assert {n: t.shape for n, t in built.items()} == {
        n: t.shape for n, t in clip.state_dict().items() if not n.startswith("logit")
    }


def test_the_configuration_survives_json(clip: Clip) -> None:
    assert ClipConfig.from_dict(clip.config.to_dict()) == clip.config


def test_the_fingerprint_is_sha256_over_architecture_names_shapes_and_values(tiny_clip: Clip) -> None:
    state = {"b": torch.tensor([[1.0], [2.0]]), "a": torch.tensor(0.5)}
    by_hand = b"a[]" + np.float32(0.5).tobytes() + b"b[2, 1]" + np.array([1, 2], "<f4").tobytes()
    architecture = json.dumps(tiny_clip.config.to_dict()).encode()
    assert fingerprint_of(tiny_clip.config, state) == hashlib.sha256(architecture + by_hand).hexdigest()


def test_the_fingerprint_sees_the_model_and_not_its_form(tiny_clip: Clip, tiny_resnet: Clip) -> None:
    config = tiny_clip.config
    a, b = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    same = fingerprint_of(config, {"a": a, "b": b})
    assert fingerprint_of(config, {"b": b, "a": a.double()}) == same
    assert fingerprint_of(config, {"a": a.T.contiguous().T, "b": nn.Parameter(b)}) == same
    flipped = a.clone()
    flipped.view(torch.int32)[0, 0] ^= 1
    others = [{"a": flipped, "b": b}, {"a": a.reshape(6, 4), "b": b}, {"a": a, "c": b}, {"a": a}, {"a": a.T, "b": b}]
    found = {fingerprint_of(config, other) for other in others}
    gelu = dataclasses.replace(config, text=dataclasses.replace(config.text, activation="gelu"))
    found |= {fingerprint_of(other, {"a": a, "b": b}) for other in (tiny_resnet.config, gelu)}
    assert len(found - {same}) == 7


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
def test_an_encoder_gives_every_row_in_order_whatever_the_batch(
    clip: Clip, batch: int, pixels: Tensor, ids: Tensor
) -> None:
    encoder, sizes = TorchEncoder(clip, batch), []
    handles = [
        module.register_forward_hook(lambda *call: sizes.append(len(call[1][0]))) for module in (clip.image, clip.text)
    ]
    images, texts = encoder.encode_image(pixels.numpy()), encoder.encode_text(ids.numpy())
    for handle in handles:
        handle.remove()
    assert isinstance(images, np.ndarray)
    assert (images.dtype, texts.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(images, clip.encode_image(pixels).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(texts, clip.encode_text(ids).numpy(), rtol=1e-4, atol=1e-5)
    assert max(sizes) <= batch
    assert sum(sizes) == len(pixels) + len(ids)


def test_an_encoder_prepares_inputs_as_its_model_does(tiny_clip: Clip) -> None:
    encoder = TorchEncoder(tiny_clip)
    assert (encoder.preprocess, encoder.tokenizer) == (tiny_clip.preprocess, tiny_clip.tokenizer)


def test_an_encoder_records_no_gradients(tiny_clip: Clip, pixels: Tensor) -> None:
    seen: list[Tensor] = []
    trained = rebuilt(tiny_clip, state_of(tiny_clip)).requires_grad_(True)
    trained.image.register_forward_hook(lambda *call: seen.append(call[-1]))
    TorchEncoder(trained).encode_image(pixels.numpy())
    assert not seen[0].requires_grad

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import RESNET, VIT, random_clip
from d4c import synthesize
from d4c.artifact.architecture import ClipConfig, ResNetConfig, TextConfig, VisionTransformerConfig
from d4c.errors import RecipeError
from d4c.models import Clip
from d4c.recipes import Synthesize
from d4c.recipes.methods import METHODS, with_method
from d4c.synthesize.loss import SynthesisLoss, bytes_kept, round_of
from d4c.synthesize.views import roll_and_mirror, sample_boxes

# Patches of 4 pixels: four patches have too few similarities for a density.
FINE = dataclasses.replace(VIT, image=VisionTransformerConfig(32, 4, 32, 2, 2, 128, "quick_gelu"))
PROMPTS = [f"a photo of a {name}." for name in ("cat", "dog", "tree", "car")]
SMALL = Synthesize(images=8, batch=8, steps=40, learning_rate=0.05, noise=0.0, coarse_to_fine=False)


def loss_of(clip: Clip, config: Synthesize) -> SynthesisLoss:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(len(PROMPTS), (config.images,), generator=generator)
    return SynthesisLoss(clip, PROMPTS, targets, sample_boxes(config.images, 32, generator), config, 0)


@pytest.mark.parametrize(
    ("config", "method"), [(RESNET, "bns"), (FINE, "pse"), (FINE, "psaq"), (FINE, "d4c-1"), (FINE, "d4c-3")]
)
def test_a_method_lowers_its_loss(config: ClipConfig, method: str) -> None:
    clip = random_clip(config)
    settings = dataclasses.replace(with_method(SMALL, method), batch=8, steps=SMALL.steps)
    end = synthesize.run(clip, PROMPTS, settings, seed=1)
    start = synthesize.run(clip, PROMPTS, dataclasses.replace(settings, steps=0), seed=1)
    loss = SynthesisLoss(clip, PROMPTS, end.prompt_index, end.boxes, settings, 99)
    with torch.no_grad():  # draws that the run has not seen
        before, after = (
            torch.stack([loss(x.pixels, slice(0, 8), step) for step in range(10)]).mean() for x in (start, end)
        )
    assert after < before - 0.02 * before.abs()


def test_batchnorm_statistics_are_those_of_the_model(tiny_resnet: Clip, pixels: Tensor) -> None:
    config = dataclasses.replace(with_method(SMALL, "bns"), total_variation=0.0)
    stem = tiny_resnet.image.stem
    assert isinstance(stem, nn.Module)
    first = stem.conv1(pixels)  # [image, channel, height, width], what the first BatchNorm reads
    only = loss_of(tiny_resnet, config)
    only.norms = {"image.stem.bn1": stem.bn1}
    flat = first.transpose(0, 1).flatten(1)  # [channel, value]
    expected = (flat.mean(dim=1) - stem.bn1.running_mean).square().mean()
    expected += (flat.var(dim=1, correction=0) - stem.bn1.running_var).square().mean()
    torch.testing.assert_close(only(pixels, slice(0, 8), 0), expected)
    assert len(loss_of(tiny_resnet, config).norms) == 3 + 4 * 3 + 4  # stem, four bottlenecks, four shortcuts


@pytest.mark.parametrize("model", ["tiny_resnet", "tiny_clip"])
def test_objectives_combine_with_their_weights(model: str, pixels: Tensor, request: pytest.FixtureRequest) -> None:
    clip = request.getfixturevalue(model)
    key = "batchnorm_statistics" if model == "tiny_resnet" else "patch_similarity"
    plain = dataclasses.replace(SMALL, structural_contrast=False, perturbation=False, total_variation=0.0)
    contrast = loss_of(clip, plain)(pixels, slice(0, 8), 0)
    inside = loss_of(clip, dataclasses.replace(plain, prompt_contrast=0.0, **{key: 1.0}))(pixels, slice(0, 8), 0)
    both = loss_of(clip, dataclasses.replace(plain, prompt_contrast=0.5, **{key: 0.3}))(pixels, slice(0, 8), 0)
    torch.testing.assert_close(both, 0.5 * contrast + 0.3 * inside)


@pytest.mark.parametrize(
    ("model", "settings", "step"),
    [
        ("tiny_clip", {"coarse_to_fine": True}, 20),  # of 40: half of the patches
        ("tiny_clip", {"coarse_to_fine": True}, 39),  # all of them
        ("tiny_clip", {"patch_similarity": 1.0}, 0),
        ("tiny_resnet", {"batchnorm_statistics": 1.0}, 0),
    ],
)
def test_computing_activations_again_changes_no_gradient(
    model: str,
    settings: dict[str, Any],
    step: int,
    pixels: Tensor,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, config = request.getfixturevalue(model), dataclasses.replace(SMALL, noise=0.1, **settings)
    gradients = []
    for most in (math.inf, 0):
        monkeypatch.setattr("d4c.synthesize.loss.MOST_KEPT", most)
        loss, x = loss_of(clip, config), pixels.clone().requires_grad_()
        assert loss.recompute == (most == 0)
        loss(x, slice(0, 8), step).backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert bool(gradients[0].any())


def test_a_machine_with_little_memory_computes_activations_again(
    tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (1 + SMALL.structural_contrast) * min(SMALL.batch, SMALL.images) * bytes_kept(tiny_clip)
    for memory, again in ((4 * kept + 1, False), (4 * kept - 1, True)):
        monkeypatch.setattr("d4c.synthesize.loss.total_memory", lambda _, memory=memory: memory)
        assert loss_of(tiny_clip, SMALL).recompute == again


def test_what_a_picture_leaves_in_memory_is_counted(tiny_clip: Clip) -> None:
    shape = tiny_clip.image.config
    assert isinstance(shape, VisionTransformerConfig)
    tokens, width = shape.num_tokens, shape.width
    # Each block's gradients need at least both LayerNorms' inputs, q, k, v, and both sides of the MLP's activation.
    least = 4 * shape.layers * tokens * (5 * width + 2 * shape.mlp_width)
    weights = sum(4 * p.numel() for p in tiny_clip.image.parameters())
    assert least <= bytes_kept(tiny_clip) <= 4 * least
    assert bytes_kept(tiny_clip) < weights  # which are there anyway, and are not counted


def test_statistics_are_of_foregrounds_not_of_backgrounds(tiny_resnet: Clip, pixels: Tensor) -> None:
    config = dataclasses.replace(
        SMALL, structural_contrast=True, perturbation=False, total_variation=0.0, batchnorm_statistics=1.0
    )
    loss = loss_of(tiny_resnet, config)
    without = loss_of(tiny_resnet, dataclasses.replace(config, batchnorm_statistics=0.0))
    statistics = loss(pixels, slice(0, 8), 0) - without(pixels, slice(0, 8), 0)
    crops = synthesize.loss.enlarge_boxes(pixels, loss.boxes)
    alone = loss_of(tiny_resnet, dataclasses.replace(with_method(SMALL, "bns"), total_variation=0.0))
    torch.testing.assert_close(statistics, alone(crops, slice(0, 8), 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("model", "method"), [("tiny_clip", "bns"), ("tiny_resnet", "pse"), ("tiny_resnet", "psaq")])
def test_an_objective_that_the_model_cannot_have_is_refused(
    model: str, method: str, request: pytest.FixtureRequest
) -> None:
    clip = request.getfixturevalue(model)
    with pytest.raises(RecipeError, match=r"needs (BatchNorms|a ViT)"):
        synthesize.run(clip, PROMPTS, with_method(SMALL, method))


def test_the_methods_are_those_of_the_paper() -> None:
    switches = {n: (METHODS[n]["structural_contrast"], METHODS[n]["perturbation"]) for n in METHODS if "d4c-" in n}
    assert switches == {
        "d4c-0": (False, False), "d4c-1": (True, False), "d4c-2": (False, True), "d4c-3": (True, True)
    }  # fmt: skip
    for name in METHODS:
        assert with_method(SMALL, name).images == SMALL.images


def test_psaq_rolls_farther_in_its_second_round() -> None:
    config = dataclasses.replace(with_method(SMALL, "psaq"), steps=10)
    assert [round_of(config, step) for step in range(10)] == [0] * 5 + [1] * 5
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(1, 1, 32, 32)
    x[..., 16, 16] = 1
    reached = set()
    for _ in range(300):
        row, column = (int(v) for v in roll_and_mirror(x, 3, generator)[0, 0].nonzero()[0])
        mirrored = 31 - column
        assert row - 16 in (column - 16, mirrored - 16)  # one offset along both axes
        reached.add(row - 16)
    assert reached == {-3, -2, -1, 0, 1, 2, 3}


def test_the_rate_rises_then_falls_in_every_round() -> None:
    config = dataclasses.replace(SMALL, steps=20, rounds=2, warm_up=0.2, learning_rate=1.0, schedule="cosine")
    rates = [synthesize.optimize._learning_rate(config, step) for step in range(20)]
    half = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8))]  # two steps up, eight down
    assert rates == pytest.approx(half * 2)


def test_the_variation_target_is_drawn_once_a_round_and_scaled_to_the_size(tiny_clip: Clip) -> None:
    config = dataclasses.replace(with_method(SMALL, "psaq"), steps=10)
    loss = loss_of(tiny_clip, config)
    values = 32 * 3 * 224 * 224
    targets = [loss._variation_target(values, slice(0, 8), step) for step in range(10)]
    assert len(set(targets[:5])) == len(set(targets[5:])) == 1
    assert targets[0] != targets[5]
    assert all(2500 <= target <= 3000 for target in targets)
    assert loss._variation_target(values // 4, slice(0, 8), 0) == pytest.approx(targets[0] / 2)


def test_every_batchnorm_of_rn50_is_a_term() -> None:
    text = TextConfig(77, 49408, 64, 1, 1, 64, "quick_gelu")
    clip = random_clip(ClipConfig(16, ResNetConfig(32, 4, (3, 4, 6, 3), 4), text))  # RN50's blocks, few channels
    assert len(loss_of(clip, with_method(SMALL, "bns")).norms) == 3 + 3 * 16 + 4 == 55  # stem, bottlenecks, shortcuts

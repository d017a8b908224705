import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from d4c import synthesize
from d4c.artifact import Work
from d4c.images import procedural_set
from d4c.models import Clip
from d4c.recipes import Synthesize
from d4c.recipes.seeds import derive_seed
from d4c.synthesize import optimize
from d4c.synthesize.loss import SynthesisLoss
from d4c.synthesize.views import sample_boxes

PROMPTS = [f"a photo of a {name}." for name in ("cat", "dog", "tree", "car", "spoon", "house", "shoe")]
PIXELS = Synthesize(learning_rate=0.05, start="one_over_f", noise=0.0, parametrization="pixels", coarse_to_fine=False)
SMALL = dataclasses.replace(PIXELS, images=6, batch=2, steps=3)
PLAIN = dataclasses.replace(PIXELS, images=8, batch=8, steps=40, structural_contrast=False, perturbation=False)
SWITCHES = [(False, False), (True, False), (False, True), (True, True)]


class Crash(BaseException):
    """Like a kill: nothing catches it."""


def objective_of(clip: Clip, config: Synthesize, seed: int = 0) -> SynthesisLoss:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(len(PROMPTS), (config.images,), generator=generator)
    return SynthesisLoss(clip, PROMPTS, targets, sample_boxes(config.images, 32, generator), config, seed)


@pytest.mark.parametrize(("structural_contrast", "perturbation"), SWITCHES)
@pytest.mark.parametrize("momentum_drift", [True, False])
@pytest.mark.parametrize(("model", "share"), [("tiny_clip", 0.7), ("tiny_resnet", 0.99)])  # random ResNets hardly care
def test_synthesis_lowers_its_objective(
    model: str,
    share: float,
    momentum_drift: bool,
    structural_contrast: bool,
    perturbation: bool,
    request: pytest.FixtureRequest,
) -> None:
    clip = request.getfixturevalue(model)
    config = dataclasses.replace(
        PLAIN,
        batch=4,
        momentum_drift=momentum_drift,
        structural_contrast=structural_contrast,
        perturbation=perturbation,
    )
    end = synthesize.run(clip, PROMPTS, config, seed=1)
    start = synthesize.run(clip, PROMPTS, dataclasses.replace(config, steps=0), seed=1)
    assert torch.equal(end.prompt_index, start.prompt_index)
    assert torch.equal(end.boxes, start.boxes)
    objective = SynthesisLoss(clip, PROMPTS, end.prompt_index, end.boxes, config, 99)
    with torch.no_grad():  # draws that the run has not seen
        before, after = (
            torch.stack([objective(x.pixels[:4], slice(0, 4), step) for step in range(10)]).mean() for x in (start, end)
        )
    assert after < share * before


def test_the_objective_by_hand(tiny_clip: Clip, pixels: Tensor) -> None:
    config = dataclasses.replace(PLAIN, total_variation=0.25, temperature=0.2)
    objective = objective_of(tiny_clip, config)
    f = torch.nn.functional.normalize(tiny_clip.encode_image(pixels[2:5]), dim=1)
    t = torch.nn.functional.normalize(tiny_clip.encode_text(torch.from_numpy(tiny_clip.tokenizer(PROMPTS))), dim=1)
    shares = (f @ t.T / 0.2).softmax(dim=1)[torch.arange(3), objective.targets[2:5]]
    variation = pixels[2:5].diff(dim=2).square().mean() + pixels[2:5].diff(dim=3).square().mean()
    torch.testing.assert_close(objective(pixels[2:5], slice(2, 5), 0), -shares.log().mean() + 0.25 * variation)


@pytest.mark.parametrize(("structural_contrast", "perturbation"), SWITCHES)
def test_variation_is_that_of_the_raw_image_unless_the_model_sees_it_perturbed(
    tiny_clip: Clip, structural_contrast: bool, perturbation: bool, pixels: Tensor
) -> None:
    config = dataclasses.replace(PLAIN, structural_contrast=structural_contrast, perturbation=perturbation)
    without, full = (
        objective_of(tiny_clip, dataclasses.replace(config, total_variation=weight))(pixels, slice(0, 8), 0)
        for weight in (0.0, 10.0)
    )
    variation = pixels.diff(dim=2).square().mean() + pixels.diff(dim=3).square().mean()
    raw = abs(float((full - without) / 10 / variation) - 1) < 1e-3
    assert raw is (structural_contrast or not perturbation)


def test_the_objective_of_a_slice_depends_on_its_place_and_step_alone(tiny_clip: Clip, pixels: Tensor) -> None:
    objective = objective_of(tiny_clip, dataclasses.replace(PIXELS, images=8, batch=4))
    first = objective(pixels[4:], slice(4, 8), 5)
    torch.manual_seed(9)
    objective(pixels[:4], slice(0, 4), 2)
    assert torch.equal(objective(pixels[4:], slice(4, 8), 5), first)
    assert not torch.equal(objective(pixels[4:], slice(4, 8), 6), first)  # fresh draws at every step
    objective.targets[:4], objective.boxes[:4] = objective.targets[4:], objective.boxes[4:]
    assert not torch.equal(objective(pixels[4:], slice(0, 4), 5), first)  # and in every slice


@pytest.mark.parametrize("momentum_drift", [True, False])
def test_same_seed_same_images_other_seed_other_images(tiny_clip: Clip, momentum_drift: bool) -> None:
    config = dataclasses.replace(SMALL, momentum_drift=momentum_drift)
    first = synthesize.run(tiny_clip, PROMPTS, config, seed=1)
    torch.manual_seed(5)  # the global generator plays no part
    again, other = (synthesize.run(tiny_clip, PROMPTS, config, seed=seed) for seed in (1, 2))
    for name in ("pixels", "prompt_index", "boxes"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.pixels, other.pixels)
    assert (first.seed, first.fingerprint, first.prompts) == (1, tiny_clip.fingerprint, tuple(PROMPTS))


@pytest.mark.parametrize(
    ("momentum_drift", "crash_at", "kept"),
    # Progress is reported after each of 3 steps of 3 batches, of which finished batches are kept, or after each sweep.
    [*((False, call, (call - 1) // 3 * 3) for call in range(1, 10)), *((True, call, call - 1) for call in (1, 2, 3))],
)
def test_images_do_not_depend_on_where_a_run_was_interrupted(
    tiny_clip: Clip, momentum_drift: bool, crash_at: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "SECONDS_BETWEEN_CHECKPOINTS", -1)  # keep the state after every sweep
    config = dataclasses.replace(SMALL, momentum_drift=momentum_drift)
    calls: list[int] = []

    def crash(_: str, done: int, __: int) -> None:
        calls.append(done)
        if len(calls) == crash_at:
            raise Crash

    with pytest.raises(Crash):
        synthesize.run(tiny_clip, PROMPTS, config, work=Work(tmp_path, crash))
    rest: list[int] = []
    work = Work(tmp_path, lambda _, done, __: rest.append(done))
    resumed = synthesize.run(tiny_clip, PROMPTS, config, work=work)
    assert torch.equal(resumed.pixels, synthesize.run(tiny_clip, PROMPTS, config).pixels)
    assert len(rest) == (3 if momentum_drift else 9) - kept
    synthesize.run(tiny_clip, PROMPTS, config, work=Work(tmp_path, lambda *_: pytest.fail("made again")))


@pytest.mark.parametrize(("batch", "factor"), [(1, 8**0.5), (2, 2.0), (8, 1.0)])
def test_momentum_moves_images_by_the_root_of_the_number_of_batches(tiny_clip: Clip, batch: int, factor: float) -> None:
    # While the gradient is steady, Adam's moments of an image are g / M and g^2 / M over M steps, its own and M - 1
    # of zeros: (g / M) / (|g| / sqrt(M)) a step, sqrt(M) learning rates a sweep. Small steps keep it steady.
    config = dataclasses.replace(
        PLAIN, batch=batch, learning_rate=1e-5, schedule="constant", momentum_drift=True, valid_pixels=False
    )
    early, late = (
        synthesize.run(tiny_clip, PROMPTS, dataclasses.replace(config, steps=steps)).pixels for steps in (20, 40)
    )
    moved = (late - early).abs() / (20 * 1e-5)
    assert moved.median().item() == pytest.approx(factor, rel=0.05)
    assert ((moved / factor - 1).abs() < 0.1).float().mean().item() > 0.85  # the rest crosses a zero of its gradient


def test_without_drift_an_image_moves_one_learning_rate_a_step(tiny_clip: Clip) -> None:
    config = dataclasses.replace(PLAIN, batch=1, learning_rate=1e-5, schedule="constant", valid_pixels=False)
    early, late = (
        synthesize.run(tiny_clip, PROMPTS, dataclasses.replace(config, steps=steps)).pixels for steps in (20, 40)
    )
    assert ((late - early).abs() / (20 * 1e-5)).median().item() == pytest.approx(1, rel=0.05)


def test_the_cosine_course_sums_to_half_the_steps(tiny_clip: Clip) -> None:
    # lr (1 + cos(pi t / 40)) / 2 over t = 0 .. 39 sums to (40 + 1) / 2 learning rates.
    config = dataclasses.replace(PLAIN, learning_rate=1e-5, valid_pixels=False)
    start, end = (
        synthesize.run(tiny_clip, PROMPTS, dataclasses.replace(config, steps=steps)).pixels for steps in (0, 40)
    )
    assert (end - start).abs().median().item() == pytest.approx(20.5e-5, rel=0.05)


@pytest.mark.parametrize("valid", [True, False])
def test_pixels_stay_between_black_and_white_where_asked(tiny_clip: Clip, valid: bool) -> None:
    config = dataclasses.replace(PLAIN, learning_rate=0.5, steps=10, valid_pixels=valid)
    found = synthesize.run(tiny_clip, PROMPTS, config).pixels
    low, high = (torch.from_numpy(v) for v in tiny_clip.preprocess.valid_range())
    assert bool(((found >= low) & (found <= high)).all()) is valid


@pytest.mark.parametrize("method", ["noise", "one_over_f", "dead_leaves"])
def test_procedures_take_no_steps(tiny_clip: Clip, method: str) -> None:
    config = Synthesize(method=method, images=3)  # type: ignore[arg-type]
    found = synthesize.run(tiny_clip, PROMPTS, config, seed=4)
    start = derive_seed(4, "synthesize", "start")
    assert torch.equal(found.pixels, procedural_set(method, 3, tiny_clip.preprocess, start).pixels)


def test_the_model_is_left_as_it_was(tiny_clip: Clip) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_clip.state_dict().items()}
    synthesize.run(tiny_clip, PROMPTS, SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_clip.state_dict().items())
    assert all(p.grad is None for p in tiny_clip.parameters())


@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet"])
def test_a_pyramid_lowers_the_objective_within_what_pictures_can_hold(
    model: str, request: pytest.FixtureRequest
) -> None:
    clip = request.getfixturevalue(model)
    config = dataclasses.replace(PLAIN, parametrization="pyramid", valid_pixels=False, noise=0.1, coarse_to_fine=True)
    end = synthesize.run(clip, PROMPTS, config, seed=1)
    start = synthesize.run(clip, PROMPTS, dataclasses.replace(config, steps=0), seed=1)
    objective = SynthesisLoss(clip, PROMPTS, end.prompt_index, end.boxes, PLAIN, 99)
    with torch.no_grad():
        before, after = (float(objective(x.pixels, slice(0, 8), 0)) for x in (start, end))
    assert after < (0.9 if model == "tiny_clip" else 1.0) * before
    low, high = (torch.from_numpy(v) for v in clip.preprocess.valid_range())
    assert bool(((end.pixels >= low) & (end.pixels <= high)).all())


@pytest.mark.parametrize("parametrization", ["pixels", "pyramid"])
def test_an_interrupted_set_of_either_kind_ends_the_same(parametrization: str, tiny_clip: Clip, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, parametrization=parametrization, noise=0.2, coarse_to_fine=True)  # type: ignore[arg-type]

    def crash(_: str, done: int, __: int) -> None:
        if done >= 10:
            raise Crash

    with pytest.raises(Crash):
        synthesize.run(tiny_clip, PROMPTS, config, work=Work(tmp_path, crash))
    resumed, whole = (synthesize.run(tiny_clip, PROMPTS, config, work=w) for w in (Work(tmp_path), None))
    assert torch.equal(resumed.pixels, whole.pixels)


def test_coarse_to_fine_looks_at_fewer_tokens_first(tiny_clip: Clip, tiny_siglip: Clip, pixels: Tensor) -> None:
    config = dataclasses.replace(PLAIN, steps=10, coarse_to_fine=True)
    for clip in (tiny_clip, tiny_siglip):
        objective = objective_of(clip, config)
        tokens: list[int] = []
        handle = clip.image.blocks[0].register_forward_hook(lambda _, __, y, seen=tokens: seen.append(y.shape[1]))
        for step in range(10):
            objective(pixels[:4], slice(0, 4), step)
        handle.remove()
        side = clip.image.config.image_size // clip.image.config.patch_size
        prefix = int(clip.image.config.class_token)
        coarse = min(4, side) ** 2 if side > 4 else side * side // 2  # where 4 x 4 is all there is, half are dropped
        assert tokens == [coarse + prefix] * 4 + [side * side // 2 + prefix] * 4 + [side * side + prefix] * 2


def test_noise_falls_to_a_fifth(tiny_clip: Clip) -> None:
    config = dataclasses.replace(PLAIN, steps=100, noise=0.5)
    objective = objective_of(tiny_clip, config)
    blank = torch.zeros(4, 3, 32, 32)
    spread = [float(objective._noisy(blank, step, torch.Generator().manual_seed(0)).std()) for step in (0, 50, 100)]
    assert spread == pytest.approx([0.5, 0.3, 0.1], rel=0.05)

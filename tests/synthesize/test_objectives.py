import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4c.synthesize.objectives import (
    attended_inputs,
    attended_values,
    batchnorm_statistics,
    patch_similarity_entropy,
    semantic_injection,
    structural_contrast,
    total_variation,
    variation_norms,
)

TAU = 0.1


def unit_rows(num: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(num, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_semantic_injection_is_the_mean_over_images() -> None:
    images, texts, targets = unit_rows(5, 0), unit_rows(7, 1), torch.tensor([0, 6, 3, 3, 1])
    losses = []
    for f, y in zip(images, targets.tolist(), strict=True):
        shares = [math.exp(float(f @ t) / TAU) for t in texts]
        losses.append(-math.log(shares[y] / sum(shares)))
    assert semantic_injection(images, texts, targets, TAU).item() == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_structural_contrast_has_prompts_and_all_backgrounds_in_one_softmax() -> None:
    foregrounds, backgrounds, texts, targets = (
        unit_rows(4, 0),
        unit_rows(4, 2),
        unit_rows(7, 1),
        torch.tensor([0, 6, 3, 3]),
    )
    losses = []
    for u, y in zip(foregrounds, targets.tolist(), strict=True):
        prompts = [math.exp(float(u @ t) / TAU) for t in texts]
        others = [math.exp(float(u @ b) / TAU) for b in backgrounds]  # its own among them
        losses.append(-math.log(prompts[y] / (sum(prompts) + sum(others))))
    found = structural_contrast(foregrounds, backgrounds, texts, targets, TAU)
    assert found.item() == pytest.approx(sum(losses) / 4, rel=1e-5)


def with_cosine(cosine: float, num: int) -> Tensor:
    """Unit vectors at one cosine to (1, 0)."""
    return torch.tensor([[cosine, math.sqrt(1 - cosine**2)]]).expand(num, -1)


def test_the_loss_starts_where_arithmetic_says() -> None:
    # Equal cosines to 180 prompts give ln 180 = 5.19. With 16 backgrounds at 0.9 beside prompts at 0.2:
    # ln(180 e^2 + 16 e^9) - 2 = ln(1330 + 129649) - 2 = 9.78.
    image, targets = torch.tensor([[1.0, 0.0]]).expand(16, -1), torch.arange(16)
    prompts, backgrounds = with_cosine(0.2, 180), with_cosine(0.9, 16)
    assert semantic_injection(image, prompts, targets, TAU).item() == pytest.approx(5.193, abs=1e-3)
    assert structural_contrast(image, backgrounds, prompts, targets, TAU).item() == pytest.approx(9.783, abs=1e-3)


def test_gradients_reach_foregrounds_and_backgrounds() -> None:
    u, b = unit_rows(2, 0).requires_grad_(), unit_rows(2, 1).requires_grad_()
    structural_contrast(u, b, unit_rows(3, 2), torch.tensor([0, 1]), TAU).backward()
    assert u.grad is not None
    assert b.grad is not None
    assert bool((u.grad.norm(dim=1) > 0).all() and (b.grad.norm(dim=1) > 0).all())


def test_total_variation_is_a_mean_over_images() -> None:
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    c, h, w = 2, 4, 5
    terms = []
    for image in x.tolist():
        across = sum(
            (image[k][i][j + 1] - image[k][i][j]) ** 2 for k in range(c) for i in range(h) for j in range(w - 1)
        )
        down = sum((image[k][i + 1][j] - image[k][i][j]) ** 2 for k in range(c) for i in range(h - 1) for j in range(w))
        terms.append(across / (c * h * (w - 1)) + down / (c * (h - 1) * w))
    assert total_variation(x).item() == pytest.approx(sum(terms) / 3, rel=1e-5)
    assert total_variation(torch.ones(1, 3, 4, 4)).item() == 0


def batchnorm(mean: list[float], variance: list[float]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(mean)).eval()
    norm.running_mean, norm.running_var = torch.tensor(mean), torch.tensor(variance)
    return norm


def test_batchnorm_statistics_by_hand() -> None:
    # Channel 0 holds 1 1 3 3: mean 2, biased variance 1; channel 1 holds 0 0 0 4: mean 1, variance 3.
    x = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]], [[[3.0, 3.0]], [[0.0, 4.0]]]])  # [image, channel, height, width]
    # Against means 0, 1 and variances 1, 1: mean over channels of (4, 0) and of (0, 4), 2 + 2.
    assert batchnorm_statistics([x], [batchnorm([0, 1], [1, 1])]).item() == pytest.approx(4)
    # A second layer that agrees adds nothing: layers are summed.
    both = batchnorm_statistics([x, x], [batchnorm([0, 1], [1, 1]), batchnorm([2, 1], [1, 3])])
    assert both.item() == pytest.approx(4)


def test_attention_is_applied_to_inputs_or_to_values() -> None:
    # Two heads, two tokens, two channels. Head 0 looks at itself, head 1 at the other token.
    probabilities = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]])  # [1, head, query, key]
    x = torch.tensor([[[2.0, 0.0], [0.0, 4.0]]])  # [1, key, channel]
    # Heads agree on half of each token: the mean of both tokens, for both.
    torch.testing.assert_close(attended_inputs(probabilities, x), torch.tensor([[[1.0, 2.0], [1.0, 2.0]]]))
    # Head 0 has channel 0 (2, 0) and keeps it; head 1 has channel 1 (0, 4) and swaps it: (4, 0); their mean (3, 0).
    torch.testing.assert_close(attended_values(probabilities, x), torch.tensor([[[3.0], [0.0]]]))


def entropy_by_hand(cosines: list[float]) -> float:
    """A sum for each grid point, the trapezoid rule over nine intervals."""
    low, high = min(cosines), max(cosines)
    points = [low + (high - low) * i / 9 for i in range(10)]
    values = []
    for point in points:
        kernels = [math.exp(-((point - c) ** 2) / (2 * 0.01**2)) / (0.01 * math.sqrt(2 * math.pi)) for c in cosines]
        p = sum(kernels) / len(kernels) + 1e-4
        values.append(-p * math.log(p))
    return sum((values[i] + values[i + 1]) / 2 * (points[i + 1] - points[i]) for i in range(9))


def test_patch_similarity_entropy_by_hand() -> None:
    # Three patches at 0, 60 and 90 degrees: cosines 1 on the diagonal, 1/2, 0 and sqrt(3)/2 beside it, each twice.
    angles = torch.tensor([0.0, math.pi / 3, math.pi / 2])
    context = torch.stack([angles.cos(), angles.sin()], dim=1)[None] * torch.tensor([1.0, 5.0, 0.1])[:, None]
    cosines = [1, 1, 1, 0.5, 0.5, 0, 0, math.sqrt(3) / 2, math.sqrt(3) / 2]
    assert patch_similarity_entropy(context).item() == pytest.approx(entropy_by_hand(cosines), rel=1e-3)


def test_patch_similarity_entropy_is_a_mean_over_images_on_one_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(3, 5, 4, generator=generator)
    context[:, 0] = torch.tensor([1.0, 0, 0, 0])  # every image has the pair -1 and 1, so that all share one grid
    context[:, 1] = torch.tensor([-1.0, 0, 0, 0])
    alone = [patch_similarity_entropy(image[None]) for image in context]
    torch.testing.assert_close(patch_similarity_entropy(context), torch.stack(alone).mean())


def test_the_slice_at_hand_decides_not_the_nominal_batch() -> None:
    context = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    patch_similarity_entropy(context).backward()
    assert context.grad is not None
    assert bool((context.grad.flatten(1).norm(dim=1) > 0).all())


def test_variation_norms_by_hand() -> None:
    # 1 2   right: -1 -1 -> sqrt 2; below: -2 -2 -> sqrt 8; diagonals: 1 - 4 = -3 and 3 - 2 = 1.
    # 3 4
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert variation_norms(x).item() == pytest.approx(math.sqrt(2) + math.sqrt(8) + 3 + 1)

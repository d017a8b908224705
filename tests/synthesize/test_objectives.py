import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d4c.synthesize.objectives import semantic_injection, structural_contrast, total_variation

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

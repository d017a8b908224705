import numpy as np
import pytest
import torch
from torch import Tensor

from d4c.experiments.analyze.zero_shot import LabelledImages, ZeroShot, class_weights
from d4c.models import Clip, TorchEncoder


class TwoWords:
    """Token 0 points right, token 1 up, token 2 diagonally and far."""

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])[ids[:, 0]]


def test_a_classs_weight_is_the_mean_direction_of_its_prompts() -> None:
    ids = np.array([[[0], [1]], [[1], [2]]])  # [class, template, token]
    weights = class_weights(TwoWords(), ids)  # type: ignore[arg-type]
    half = 0.5**0.5
    second = np.array([half, 1 + half])
    np.testing.assert_allclose(weights, [[half, half], second / np.linalg.norm(second)])


def test_the_float_model_against_itself_loses_nothing(tiny_clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    labelled = LabelledImages("t", pixels.numpy(), np.arange(8) % 3, ids.numpy().reshape(3, 2, -1))
    zero_shot = ZeroShot(tiny_clip, labelled)
    for figures in (zero_shot.of_text(TorchEncoder(tiny_clip)), zero_shot.of_image(TorchEncoder(tiny_clip))):
        assert figures["acc1"] == figures["acc1_float"]
        assert figures["changed_predictions"] == 0


def test_accuracy_is_that_of_the_logits(tiny_clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    with torch.no_grad():
        best = (tiny_clip.encode_image(pixels, True) @ tiny_clip.encode_text(ids, True).T).argmax(dim=1).numpy()
    labels = np.where(np.arange(8) < 6, best, (best + 1) % 6)  # six of eight right
    labelled = LabelledImages("t", pixels.numpy(), labels, ids.numpy()[:, None])
    assert ZeroShot(tiny_clip, labelled).reference.metrics["acc1"] == pytest.approx(0.75)

import numpy as np
import pytest
import torch
from torch import Tensor

from d4c.evaluate import ImageTask
from d4c.experiments.analyze.zero_shot import LabelledImages, ZeroShot
from d4c.models import Clip, TorchEncoder

NAMES = ("cat", "dog", "tree", "car", "spoon", "house")


def test_the_float_model_against_itself_loses_nothing(tiny_clip: Clip, pixels: Tensor) -> None:
    task = ImageTask("t", (), 8, NAMES, ("a photo of a {c}.", "{c}"))
    zero_shot = ZeroShot(tiny_clip, LabelledImages(task, pixels.numpy(), np.arange(8) % 3))
    for figures in (zero_shot.of_text(TorchEncoder(tiny_clip)), zero_shot.of_image(TorchEncoder(tiny_clip))):
        assert figures["acc1"] == figures["acc1_float"]
        assert figures["changed_predictions"] == 0


def test_accuracy_is_that_of_the_cosines(tiny_clip: Clip, pixels: Tensor) -> None:
    ids = torch.from_numpy(tiny_clip.tokenizer(list(NAMES)))
    with torch.no_grad():
        best = (tiny_clip.encode_image(pixels, True) @ tiny_clip.encode_text(ids, True).T).argmax(dim=1).numpy()
    labels = np.where(np.arange(8) < 6, best, (best + 1) % 6)  # six of eight right
    labelled = LabelledImages(ImageTask("t", (), 8, NAMES, ("{c}",)), pixels.numpy(), labels)
    assert ZeroShot(tiny_clip, labelled).reference.metrics["acc1"] == pytest.approx(0.75)

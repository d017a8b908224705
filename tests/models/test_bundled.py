"""The models that the package carries."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from d4c.models import load
from d4c.models.load import bundled_folder, prompts_beside
from d4c.models.names import BUNDLED
from d4c.prompts import read_prompts
from models.oracle import inputs_for, row_error


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_encode_as_open_clip_does(name: str) -> None:
    clip = load(name)
    theirs = open_clip.create_model(f"local-dir:{bundled_folder(name)}").eval()
    pixels, ids = inputs_for(clip)
    with torch.no_grad():
        assert row_error(clip.encode_image(pixels), theirs.encode_image(pixels)) < 1e-5
        assert row_error(clip.encode_text(ids), theirs.encode_text(ids)) < 1e-5


@pytest.mark.parametrize("name", BUNDLED)
def test_no_two_prompts_of_a_bundled_model_are_nearly_the_same_to_it(name: str) -> None:
    clip, path = load(name), prompts_beside(name)
    assert path is not None
    prompts = read_prompts(path).prompts
    assert len(prompts) > 150
    texts = F.normalize(clip.encode_text(torch.from_numpy(clip.tokenizer(prompts))), dim=-1)
    cosines = (texts @ texts.T).fill_diagonal_(-1)
    assert cosines.max() <= 0.99


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_stays_small_and_says_what_it_was_trained_on(name: str) -> None:
    folder = bundled_folder(name)
    assert (folder / "open_clip_model.safetensors").stat().st_size < 30e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(words in card for words in ("Tiny ImageNet", "non-commercial", "EfficientNet-Lite0"))

"""What a recipe makes of a model and of names: the model that is quantized, and the texts that calibrate and judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d4c.models import Clip
from d4c.models.folding import fold_batchnorm
from d4c.models.load import prompts_beside
from d4c.prompts import PromptBank, calibration_texts, load_prompts, load_templates, read_prompts
from d4c.recipes import Recipe
from d4c.recipes.seeds import derive_seed

HELD_TEXTS = 64


def fold(clip: Clip, recipe: Recipe) -> Clip:
    """The model that the recipe quantizes: BatchNorms absorbed, unless it says that they stay."""
    return fold_batchnorm(clip) if recipe.fold_batchnorm else clip


def calibration_tokens(clip: Clip, bank: PromptBank, templates: Sequence[str], num: int, seed: int) -> Tensor:
    """The texts that the text tower is calibrated with, [text, token]."""
    texts = calibration_texts(bank, templates, num, derive_seed(seed, "calibrate", "texts"))
    return torch.from_numpy(clip.tokenizer(texts))


def held_out_tokens(clip: Clip, held_bank: PromptBank) -> Tensor:
    """The texts that judge, [text, token]; the same whatever the seed and the recipe."""
    texts = calibration_texts(held_bank, load_templates("generic"), HELD_TEXTS, 0)
    return torch.from_numpy(clip.tokenizer(texts))


def split_bank(bank: PromptBank, recipe: Recipe) -> tuple[PromptBank, PromptBank]:
    """What images are drawn towards, and names for judging that are not in it."""
    if recipe.synthesize.hold_out:
        return bank.split()
    return bank, load_prompts("own").without(bank)


def default_bank(model: str, recipe: Recipe) -> PromptBank:
    """The bank that a recipe takes where the user names none."""
    path = prompts_beside(model)
    if recipe.synthesize.prompts == "model":
        return read_prompts(path) if path is not None else load_prompts("own")
    return load_prompts(recipe.synthesize.prompts)

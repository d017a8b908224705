"""The small models with a vocabulary of 100, so that every test can wrap its own."""

import copy
import dataclasses

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from torch import Tensor, nn

from d4c.inputs import Tokenizer
from d4c.inputs.tokenizer import END, START
from d4c.models import Clip

WORDS = [f"word{i}" for i in range(98)]


def with_small_vocabulary(clip: Clip) -> Clip:
    vocabulary = {word: i for i, word in enumerate([*WORDS, START, END])}
    encoder = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    encoder.pre_tokenizer = pre_tokenizers.Whitespace()
    small = copy.deepcopy(clip)
    small.tokenizer = Tokenizer(encoder, context_length=77)
    small.text.token_embedding = nn.Embedding.from_pretrained(small.text.token_embedding.weight[: len(vocabulary)])
    small.text.config = dataclasses.replace(small.text.config, vocab_size=len(vocabulary))
    small.config = dataclasses.replace(small.config, text=small.text.config)
    return small


@pytest.fixture(scope="session")
def vit(tiny_clip: Clip) -> Clip:
    """`tiny_clip` with fewer tokens; tests must not change it."""
    return with_small_vocabulary(tiny_clip)


@pytest.fixture(scope="session")
def resnet(tiny_resnet: Clip) -> Clip:
    """`tiny_resnet` with fewer tokens; tests must not change it."""
    return with_small_vocabulary(tiny_resnet)


@pytest.fixture(scope="session")
def tokens(vit: Clip) -> Tensor:
    """Ids [6, 77] of texts of 2 to 12 tokens, end token included."""
    texts = [" ".join(WORDS[7 * i : 7 * i + num]) for i, num in enumerate((10, 0, 3, 7, 1, 4))]
    return torch.from_numpy(vit.tokenizer(texts))

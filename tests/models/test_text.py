from pathlib import Path

import pytest
import torch
from torch import Tensor

from d4c.artifact.architecture import TextConfig
from d4c.models import Clip, load
from d4c.models.text import TextTransformer
from models.oracle import VIT, changed, open_clip_model, write_folder

END = 49407


def padded_forward(text: TextTransformer, ids: Tensor) -> Tensor:
    """The tower without `trim`."""
    x, mask = text.embed(ids), text.mask(ids.shape[1], ids.device)
    for block in text.blocks:
        x = block(x, mask)
    return text.head(x, ids)


def tower(**options: object) -> TextTransformer:
    torch.manual_seed(0)  # modules draw their parameters from the global generator
    return TextTransformer(TextConfig(6, 10, 8, 1, 2, 16, "gelu", **options), 4)  # type: ignore[arg-type]


def test_trimming_keeps_the_longest_text_to_its_end_token() -> None:
    ids = torch.tensor([[8, 1, 9, 0, 0, 0], [8, 2, 3, 9, 0, 0], [8, 9, 0, 0, 0, 0]])
    text = tower()
    assert text.live_length(ids).tolist() == [3, 4, 2]
    assert text.trim(ids).tolist() == [[8, 1, 9, 0], [8, 2, 3, 9], [8, 9, 0, 0]]


def test_the_first_of_several_highest_ids_ends_a_text() -> None:
    ids = torch.tensor([[8, 9, 1, 9, 9, 0]])  # padded with the end token, as some tokenizers do
    assert tower().live_length(ids).tolist() == [2]
    text = tower().eval()
    torch.testing.assert_close(text(ids), text(torch.tensor([[8, 9, 0, 0, 0, 0]])))


@pytest.mark.parametrize("options", [{"causal": False}, {"pooling": "last"}, {"causal": False, "pooling": "last"}])
def test_nothing_is_trimmed_where_later_tokens_count(options: dict[str, object]) -> None:
    ids = torch.tensor([[8, 9, 0, 0, 0, 0], [8, 1, 9, 0, 0, 0]])
    text = tower(**options)
    assert text.live_length(ids).tolist() == [6, 6]
    assert torch.equal(text.trim(ids), ids)
    other = ids.clone()
    other[:, -1] = 5
    assert not torch.allclose(text(ids), text(other), atol=1e-3)


def test_a_token_sees_itself_and_earlier_ones() -> None:
    inf = float("inf")
    assert tower().mask(3, torch.device("cpu")).tolist() == [[0, -inf, -inf], [0, 0, -inf], [0, 0, 0]]
    assert tower(causal=False).mask(3, torch.device("cpu")) is None


def test_trimmed_texts_embed_as_padded_ones(tiny_clip: Clip, ids: Tensor) -> None:
    text = tiny_clip.text
    assert text.trim(ids).shape[1] < 77
    with torch.no_grad():
        torch.testing.assert_close(text(ids), padded_forward(text, ids), rtol=0, atol=1e-6)
        for row in ids:  # each at its own length
            torch.testing.assert_close(text(row[None]), padded_forward(text, row[None]), rtol=0, atol=1e-6)


def test_what_follows_the_end_token_has_no_influence(tiny_clip: Clip, ids: Tensor) -> None:
    noise = torch.randint(0, END, ids.shape, generator=torch.Generator().manual_seed(0))
    behind = torch.arange(77) > ids.argmax(dim=1, keepdim=True)
    other = torch.where(behind, noise, ids)
    assert not torch.equal(other, ids)
    with torch.no_grad():
        torch.testing.assert_close(tiny_clip.text(other), tiny_clip.text(ids), rtol=0, atol=1e-6)
        before = torch.where(torch.arange(77) == 1, noise, ids)  # while what precedes it has
        assert (tiny_clip.text(before) - tiny_clip.text(ids)).norm(dim=1).min() > 0.1


def test_a_text_that_fills_the_context_is_not_cut(tiny_clip: Clip) -> None:
    ids = torch.from_numpy(tiny_clip.tokenizer("word " * 200))
    assert ids[0, -1] == END
    assert tiny_clip.text.trim(ids).shape == (1, 77)
    with torch.no_grad():
        torch.testing.assert_close(tiny_clip.text(ids), padded_forward(tiny_clip.text, ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("pool_type", "picked"), [("argmax", [2, 1]), ("last", [-1, -1]), ("first", [0, 0])], ids=lambda v: str(v)
)
def test_the_pooled_token_is_the_one_that_the_configuration_names(
    pool_type: str, picked: list[int], tmp_path: Path
) -> None:
    config = changed(VIT, text={"pool_type": pool_type})
    model = open_clip_model(config)
    text = load(f"local-dir:{write_folder(tmp_path, config, model.state_dict())}").text
    x = torch.randn(2, 4, 48, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 59, 3], [1, 59, 0, 0]])
    with torch.no_grad():
        expected = model.ln_final(x)[torch.arange(2), picked] @ model.text_projection
        torch.testing.assert_close(text.head(x, ids), expected)

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from d4c.errors import ModelFileError, UnsupportedModelError
from d4c.inputs import Tokenizer
from d4c.inputs.tokenizer import END, START
from d4c.inputs.tokenizer_files import read_tokenizer

# Unigram: the likeliest way to cut a text; "▁cat" beats its letters.
WORDS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("c", -4.0), ("a", -4.0), ("t", -4.0),
         ("▁cat", -2.0), ("<s>", 0.0), ("C", -4.0), (".", -4.0)]  # fmt: skip


def write(folder: Path, config: dict[str, Any] | None = None, template: str | None = "$A </s>") -> Path:
    """A folder with a Unigram tokenizer."""
    encoder = tokenizers.Tokenizer(models.Unigram(WORDS, 2, byte_fallback=False))
    encoder.pre_tokenizer = pre_tokenizers.Metaspace()
    encoder.add_special_tokens(["<pad>", "</s>", "<unk>", "<s>"])
    if template:
        encoder.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 8), ("</s>", 1)])
    encoder.enable_padding(length=50)  # what a file says of lengths is not what the model needs
    encoder.enable_truncation(3)
    encoder.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "template", "expected"),
    [
        (None, "$A </s>", [7, 1, 1, 1, 1]),  # padded with the end token where no pad token is named
        ({"pad_token": "<pad>"}, "$A </s>", [7, 1, 0, 0, 0]),
        ({"pad_token": {"content": "<pad>", "special": True}}, "<s> $A </s>", [8, 7, 1, 0, 0]),
        ({"pad_token": "<pad>"}, None, [7, 1, 0, 0, 0]),
        ({"add_eos_token": True, "eos_token": "</s>", "pad_token": "<pad>"}, None, [7, 1, 0, 0, 0]),
        ({"add_bos_token": True, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"}, "$A </s>",
         [8, 7, 1, 1, 1]),
        ({"add_bos_token": False, "add_eos_token": True, "eos_token": "</s>"}, "<s> $A </s>", [7, 1, 1, 1, 1]),
    ],
)  # fmt: skip
def test_start_end_and_padding_are_the_file_s_or_the_configuration_s(
    config: dict[str, Any] | None, template: str | None, expected: list[int], tmp_path: Path
) -> None:
    assert read_tokenizer(write(tmp_path, config, template), 5, "none")("cat").tolist() == [expected]


def test_a_text_too_long_keeps_its_end_token(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path), 5, "none")
    assert tokenizer([" ".join(["cat"] * times) for times in (3, 4, 90)]).tolist() == [
        [7, 7, 7, 1, 1],
        [7, 7, 7, 7, 1],
        [7, 7, 7, 7, 1],
    ]


@pytest.mark.parametrize(
    ("cleaning", "expected"),
    [("none", [3, 9, 5, 6, 10, 1]), ("lower", [7, 10, 1]), ("siglip", [7, 1]), ("siglip_cased", [3, 9, 5, 6, 1]),
     ("open_clip_canonicalize", [7, 1]), ("open_clip_whitespace", [3, 9, 5, 6, 10, 1]),
     ("open_clip_lower", [7, 10, 1])],
)  # fmt: skip
def test_texts_are_cleaned_as_asked(cleaning: str, expected: list[int], tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path, {"pad_token": "<pad>"}), 6, cleaning)
    assert tokenizer("Cat.")[0].tolist() == expected + [0] * (6 - len(expected))


@pytest.mark.parametrize("cleaning", ["none", "lower", "siglip", "siglip_cased", "open_clip_canonicalize"])
def test_save_then_from_folder_is_the_identity(cleaning: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    tokenizer = read_tokenizer(write(tmp_path / "source", {"pad_token": "<pad>"}, "<s> $A </s>"), 6, cleaning)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    tokenizer.save(tmp_path / "first")
    again = Tokenizer.from_folder(tmp_path / "first")
    texts = ["Cat.", "", "cat_cat!", "  \t", "CAT cat"]
    assert again(texts).tolist() == tokenizer(texts).tolist()
    assert (again.start_id, again.end_id, again.pad_id, again.context_length) == (8, 1, 0, 6)
    again.save(tmp_path / "second")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize("cleaning", ["none", "lower", "siglip", "siglip_cased"])
def test_transformers_reads_what_was_saved_and_gives_the_same_ids(cleaning: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "saved").mkdir()
    tokenizer = read_tokenizer(write(tmp_path, {"pad_token": "<pad>"}), 6, cleaning)
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("Cat.", "", "cat-cat!", "a  cat", "CAT cat", "cat " * 30):
        ids = theirs(text, padding="max_length", truncation=True, max_length=6)["input_ids"]
        assert ids == tokenizer(text)[0].tolist(), text


def test_a_vocabulary_and_merges_make_clip_s_tokenizer(tmp_path: Path) -> None:
    words = ["a", "t", "c", "a</w>", "t</w>", "at</w>", "cat</w>", START, END]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": END}))
    assert read_tokenizer(tmp_path, 6, "none")(["A Cat", "at a"]).tolist() == [[7, 3, 6, 8, 8, 8], [7, 5, 3, 8, 8, 8]]


def test_the_file_of_the_tokenizers_library_comes_first(tmp_path: Path) -> None:
    (write(tmp_path) / "spiece.model").write_bytes(b"broken")
    assert read_tokenizer(tmp_path, 3, "none")("cat").tolist() == [[7, 1, 1]]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"spiece\.model: cannot be read"):
        read_tokenizer(tmp_path, 3, "none")
    (tmp_path / "spiece.model").unlink()
    with pytest.raises(ModelFileError, match=r"expected one of tokenizer\.json, spiece\.model, vocab\.json"):
        read_tokenizer(tmp_path, 3, "none")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", "{", "cannot read the tokenizer"),
        ("tokenizer.json", "", "cannot read the tokenizer"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json: cannot be read"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json: not a tokenizer's"),
        ("tokenizer_config.json", '{"pad_token": "<other>"}', "lacks its pad token <other>"),
        ("tokenizer_config.json", '{"add_eos_token": true, "eos_token": "<other>"}', "<other>"),
    ],
)
def test_a_broken_file_is_one_error(file: str, content: str, words: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ModelFileError, match=words):
        read_tokenizer(tmp_path, 5, "none")


def test_padding_on_the_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="padding_side = left"):
        read_tokenizer(write(tmp_path, {"padding_side": "left"}), 5, "none")


def test_more_than_two_tokens_around_a_text_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="<s> <s> </s> around a text"):
        read_tokenizer(write(tmp_path, None, "<s> <s> $A </s>"), 5, "none")


def test_an_unknown_cleaning_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="unknown cleaning of texts 'boil'; known: open_clip"):
        read_tokenizer(write(tmp_path), 5, "boil")


def test_a_normalizer_of_the_file_s_own_stays(tmp_path: Path) -> None:
    encoder = tokenizers.Tokenizer.from_file(str(write(tmp_path) / "tokenizer.json"))
    encoder.normalizer = normalizers.Replace("dog", "cat")
    encoder.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path, 3, "siglip")("Dog!").tolist() == [[7, 1, 1]]

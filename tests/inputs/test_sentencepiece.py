import io
from pathlib import Path
from typing import Any

import pytest

from d4c.errors import ModelFileError
from d4c.inputs.sentencepiece import read_sentencepiece
from d4c.inputs.tokenizer_files import read_tokenizer

spm = pytest.importorskip("sentencepiece")  # the oracle; d4c itself does without

TEXTS = (
    "a photo of a cat.", "The RED car", "don't stop!", "  two   spaces\tand a tab\n",
    "under_score -- dashes; (brackets)",
    "", " ", "...", "猫の写真", "schöner Tag", "\N{GRINNING FACE} emoji", "1234567890 3.14", "cat " * 40,
    "x" * 80, "a\u2581b",
    "ＦＵＬＬ　ｗｉｄｔｈ", "salt &amp; pepper", "ﬁne ²½ Ⅷ", "e\u0301te\u0301",
)  # fmt: skip
CORPUS = [
    "a photo of a cat", "a photo of the dog in the rain", "the red car stopped", "two spaces and a tab", "fullwidth",
    "a drawing of schöner tag", "one two three 1 2 3 4 5 6 7 8 9 0", "salt and pepper, under the score",
]  # fmt: skip


def train(path: Path, **settings: Any) -> Path:
    """A SentencePiece model as T5's are made, which SigLIP uses."""
    written = io.BytesIO()
    defaults = {"vocab_size": 90, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "model_type": "unigram",
                "hard_vocab_limit": False}  # fmt: skip
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=written, minloglevel=2, **{**defaults, **settings}
    )
    path.write_bytes(written.getvalue())
    return path


@pytest.mark.parametrize(
    "settings",
    [{}, {"normalization_rule_name": "identity"}, {"add_dummy_prefix": False}, {"remove_extra_whitespaces": False}],
    ids=str,
)
def test_a_file_encodes_as_sentencepiece_does(settings: dict[str, Any], tmp_path: Path) -> None:
    path = train(tmp_path / "spiece.model", **settings)
    theirs, ours = spm.SentencePieceProcessor(model_file=str(path)), read_sentencepiece(path)
    for text in TEXTS:
        if text.isspace() and "remove_extra_whitespaces" in settings:
            continue
        assert ours.encode(text).ids == theirs.encode(text), text


def test_siglip_s_texts_get_transformers_ids(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")
    from transformers import SiglipTokenizer

    train(tmp_path / "spiece.model")
    theirs = SiglipTokenizer(vocab_file=str(tmp_path / "spiece.model"), model_max_length=16)
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer.json").exists()
    ours = read_tokenizer(tmp_path / "saved", 16, "siglip")
    for text in TEXTS:
        ids = theirs(text, padding="max_length", truncation=True, max_length=16)["input_ids"]
        assert ours(text)[0].tolist() == ids, text


@pytest.mark.parametrize("settings", [{"model_type": "bpe"}, {"byte_fallback": True, "vocab_size": 350}], ids=str)
def test_other_kinds_of_models_are_an_error(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"only Unigram .* give tokenizer\.json"):
        read_sentencepiece(train(tmp_path / "spiece.model", **settings))


def test_a_broken_file_is_one_error(tmp_path: Path) -> None:
    whole = train(tmp_path / "spiece.model").read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:7], b"\xff" * 40, whole[:-1], b"{}"):
        (tmp_path / "broken.model").write_bytes(broken)
        with pytest.raises(ModelFileError, match=r"broken\.model: cannot be read as a SentencePiece model"):
            read_sentencepiece(tmp_path / "broken.model")

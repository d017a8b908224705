import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from open_clip.tokenizer import SimpleTokenizer

from d4c.errors import ModelFileError
from d4c.inputs import Tokenizer

START, END = 49406, 49407
PIECES = (
    "a photo of a cat.", "The QUICK brown Fox", "don't", "DON'T", "they'LL", "I'm", "WE'VE", "'re'd'S", "rock'n'roll",
    "''", "'ſ", "&amp;", "&amp;amp;", "&lt;b&gt;", "&amp;lt;i&amp;gt;", "&#39;", "&amp;#x1F600;", "&nbsp;", "&copy",
    "&#128;", "&#0;", "&#xD800;", "&bogus;", "<b>&eacute;</b>", "\N{GRINNING FACE}",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1eb\U0001f1ee",
    "sch\u00c3\u00b6n", "\u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d", "donâ€™t", "\ufffd",
    "\u201ccurly\u201d it\u2019s", "ﬁne ﬂag", "ＦＵＬＬ　ｗｉｄｔｈ", "猫の写真", "一只猫", "고양이 사진", "кошка",
    "قطة صغيرة", "बिल्ली", "แมว", "ΣΊΣΥΦΟΣ", "İstanbul", "STRASSE ẞß", "ǅungla", "\u212a \u212b \u2126", "e\u0301",
    "Z\u0351\u036b\u0343a\u0323\u0331l\u035cgo\u0489", "a\u0345b", "1234567890", "3.14", "²½Ⅷ", "٣४", "7th", "A1b2",
    "\x00\x07\x1b[31mred", "tab\there", "\x1c\x1d\x85", "\u00ad\u200b\u2060\ufeff", "\u2028\u3000\u00a0\u180e",
    "\ud83d", "<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "!!!???...", "-- ___ //", "{c}", "$5 100% #1 @x",
    "supercalifragilisticexpialidocious", "zzzzzzzzzzzzzzzz", "𝒜𝕓𝟘", "𞤀𞤢",
)  # fmt: skip
GAPS = ("", "", " ", " ", "  ", "\n", "\t \r\n", "\u00a0", "\u3000 ", ", ")


def nasty_texts(num: int) -> list[str]:
    """Seeded mixtures of all that goes wrong in texts; one in ten is long enough to be cut."""
    rng = random.Random(0)
    texts = ["", " ", "\n\t ", *PIECES]
    while len(texts) < num:
        length = rng.choice((1, 2, 3, 5, 8, 8, 13, 13, 13, 60))
        parts = [part for _ in range(length) for part in (rng.choice(PIECES), rng.choice(GAPS))]
        if rng.random() < 0.3:
            drawn = "".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(6))
            # not the unassigned ones: libraries differ in how new their Unicode is
            parts.append("".join(c for c in drawn if unicodedata.category(c) != "Cn"))
        texts.append("".join(parts))
    return texts


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.openai()


@pytest.fixture(scope="module")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `save` wrote; tests must not change it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


def words(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids between start and end of a text that is not cut."""
    row = tokenizer(text)[0].tolist()
    return row[1 : row.index(END)]


def test_a_thousand_nasty_texts_get_open_clips_ids(tokenizer: Tokenizer) -> None:
    texts = nasty_texts(1000)
    expected = SimpleTokenizer()(texts).numpy()
    wrong = [text for text, same in zip(texts, (tokenizer(texts) == expected).all(axis=1), strict=True) if not same]
    assert not wrong, f"{len(wrong)} of {len(texts)}, the first: {wrong[0]!a}"
    assert 50 < (expected[:, -1] == END).sum() < 500  # many are cut, most are not
    assert len({tuple(row) for row in expected.tolist()}) > 900


def test_a_well_known_text_has_its_well_known_ids(tokenizer: Tokenizer) -> None:
    # "a photo of a cat" has these ids in the tests of many ports of OpenAI's tokenizer (Bumblebee, swift-transformers).
    row = tokenizer("a photo of a cat")[0].tolist()
    assert row == [START, 320, 1125, 539, 320, 2368, END] + [0] * 70


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),  # escaped twice
        ("&amp;lt;tag&amp;gt;", "<tag>"),
        ("A Photo Of A CAT", "a photo of a cat"),
        ("  a \t photo\r\nof\u3000a\u00a0cat ", "a photo of a cat"),
        ("sch\u00c3\u00b6n", "schön"),  # UTF-8 read as Latin-1
        ("\u201cit\u2019s\u201d", '"it\'s"'),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),  # combining accents are composed
        ("a\x00\x07b", "ab"),
        ("DON'T", "don't"),
    ],
)
def test_texts_that_say_the_same_get_the_same_ids(tokenizer: Tokenizer, text: str, plain: str) -> None:
    assert words(tokenizer, text) == words(tokenizer, plain)
    assert words(tokenizer, plain)


def test_an_entity_escaped_three_times_stays_escaped_once(tokenizer: Tokenizer) -> None:
    # The angle bracket keeps ftfy from resolving it once more.
    parts = [words(tokenizer, part) for part in ("<&", "amp", ";>")]
    assert words(tokenizer, "<&amp;amp;amp;>") == [*parts[0], *parts[1], *parts[2]]


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000", "\x00"])
def test_a_text_of_nothing_is_start_and_end(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer(text)[0].tolist() == [START, END] + [0] * 75


@pytest.mark.parametrize(("num_words", "kept"), [(74, 74), (75, 75), (76, 75), (500, 75)])  # 77 less start and end
def test_a_text_too_long_keeps_its_end_token(tokenizer: Tokenizer, num_words: int, kept: int) -> None:
    assert tokenizer("a " * num_words)[0].tolist() == [START] + [320] * kept + [END] + [0] * (75 - kept)


def test_context_length_and_padding_are_as_asked(saved: Path) -> None:
    encoder = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    short = Tokenizer(encoder, 5, pad_id=9)
    assert short(["a", "a a a", "a a a a"]).tolist() == [
        [START, 320, END, 9, 9],
        [START, 320, 320, 320, END],
        [START, 320, 320, 320, END],
    ]


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|startoftext|>", "<end_of_text>", "<start_of_text>"])
def test_names_of_special_tokens_mean_nothing_inside_a_text(tokenizer: Tokenizer, name: str) -> None:
    # open_clip 3 agrees on OpenAI's names and reads its own, <end_of_text>, as the token: a caption could end a text.
    row = tokenizer(f"before {name} after")[0].tolist()
    assert (row.count(START), row.count(END)) == (1, 1)
    assert words(tokenizer, f"before {name} after")[-1] == words(tokenizer, "after")[0]


def test_one_text_is_a_list_of_one_and_an_empty_list_gives_no_rows(tokenizer: Tokenizer) -> None:
    assert np.array_equal(tokenizer("a cat"), tokenizer(["a cat"]))
    assert tokenizer([]).shape == (0, 77)
    assert tokenizer(["a", "b"]).dtype == np.int64


def test_a_text_does_not_see_its_neighbours(tokenizer: Tokenizer) -> None:
    texts = nasty_texts(200)
    together = tokenizer(texts)
    assert all(np.array_equal(row, tokenizer(text)[0]) for row, text in zip(together, texts, strict=True))


def test_save_then_from_folder_is_the_identity(tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    again = Tokenizer.from_folder(saved)
    texts = nasty_texts(300)
    assert np.array_equal(again(texts), tokenizer(texts))
    again.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()


def test_context_length_and_padding_survive_saving(saved: Path, tmp_path: Path) -> None:
    encoder = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    Tokenizer(encoder, 5, pad_id=9).save(tmp_path)
    assert Tokenizer.from_folder(tmp_path)("a").tolist() == [[START, 320, END, 9, 9]]


ORDINARY = (
    "a photo of a cat.", "DON'T stop, it's 42 times!", "Ein schöner Tag im Cafe\u0301", "two  spaces\tand a tab",
    "一只猫在桌子上", "кошка", "\N{GRINNING FACE} emoji", "a (very) \"odd\" / one-off: 100% & more; $5",
    "the dogs' bowls, we'll, I'M, they've", "x" * 40,
)  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
def test_the_file_alone_gives_the_same_ids_for_ordinary_texts(tokenizer: Tokenizer, saved: Path, text: str) -> None:
    encoder = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    assert encoder.encode(text).ids == [START, *words(tokenizer, text), END]


def test_transformers_reads_the_folder_and_gives_the_same_ids(tokenizer: Tokenizer, saved: Path) -> None:
    from transformers import CLIPTokenizerFast

    theirs = CLIPTokenizerFast.from_pretrained(str(saved))
    assert theirs.model_max_length == 77
    for text in ORDINARY:
        assert theirs(text)["input_ids"] == [START, *words(tokenizer, text), END]
    assert theirs("a " * 500, truncation=True)["input_ids"] == tokenizer("a " * 500)[0].tolist()


def test_a_missing_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot read the tokenizer"):
        Tokenizer.from_folder(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", ""),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{}"),
    ],
)
def test_a_broken_file_is_one_error(saved: Path, tmp_path: Path, name: str, content: str) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelFileError, match="cannot read the tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_without_the_special_tokens_is_refused(saved: Path, tmp_path: Path) -> None:
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    with pytest.raises(ModelFileError, match="endoftext"):
        Tokenizer(encoder, 77)
    encoder.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    with pytest.raises(ModelFileError, match="endoftext"):
        Tokenizer.from_folder(tmp_path)

import pytest
from open_clip.tokenizer import get_clean_fn

from d4c.inputs.cleaning import CLEANINGS

TEXTS = (
    "A photo, of a CAT.", "don't", "under_score", "  two \t spaces\n", "&amp;lt;b&amp;gt;", "sch\u00c3\u00b6n",
    "\u201ccurly\u201d",
    "ＦＵＬＬ　ｗｉｄｔｈ", "", "...", "猫。", "a\u2581b", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
)  # fmt: skip


@pytest.mark.parametrize("name", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("text", TEXTS)
def test_open_clip_s_cleanings_are_its_own(name: str, text: str) -> None:
    assert CLEANINGS[f"open_clip_{name}"](text) == get_clean_fn(name)(text)


def test_the_default_is_open_clip_s_lower() -> None:
    assert CLEANINGS["open_clip"] is CLEANINGS["open_clip_lower"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A photo, of a CAT.", "a photo of a cat"),
        ("don't_do-it", "dontdoit"),
        ("  two \t spaces\n", "two spaces"),
        ("a\u2581b", "a b"),
        ("&amp;", "amp"),  # entities are not resolved
        ("猫。", "猫。"),  # only ASCII's punctuation goes
        ("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", ""),
    ],
)
def test_siglip_keeps_lower_case_words_alone(text: str, expected: str) -> None:
    assert CLEANINGS["siglip"](text) == expected
    assert CLEANINGS["siglip_cased"]("Big Cat!") == "Big Cat"


def test_siglip_2_lowers_and_else_changes_nothing() -> None:
    assert CLEANINGS["lower"]("  A Cat. ") == "  a cat. "
    assert CLEANINGS["none"]("  A Cat. ") == "  A Cat. "

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d4c.errors import PromptError
from d4c.inputs import Tokenizer
from d4c.prompts import PromptBank, calibration_texts, load_prompts, load_templates, read_prompts

# The paper's names in its order, as the method's page lists them; "_" stands for a space.
PAPER = """
cat dog bird fish horse insect elephant tiger cow monkey lion bear panda zebra giraffe kangaroo sheep goat pig deer
flower tree grass vegetable fruit mushroom cactus bamboo leaf bush
car bus train airplane bicycle boat motorcycle truck tram scooter
chair table bed sofa wardrobe desk stool bench cabinet lamp
smartphone computer refrigerator television camera microwave toaster printer tablet speaker
shoes clothes hat watch glasses belt scarf jacket socks gloves
book clock mirror painting vase fan umbrella bag suitcase towel
toy backpack ball doll puzzle board_game lego robot kite drone
house building bridge tower castle hut barn apartment tent skyscraper
bread beverage cake pizza sushi noodles hamburger sandwich steak egg
banana apple grape orange strawberry pineapple watermelon cherry peach kiwi
carrot tomato cucumber lettuce corn potato onion broccoli garlic pepper
mountain ocean cloud river lake waterfall forest desert beach island snow rain sun moon star
volcano cave cliff hill valley
road highway sidewalk crosswalk fence gate sign traffic_light mailbox trash_can
pen pencil notebook paper eraser ruler scissors calculator marker tape
sink bathtub toilet shower brush comb soap shampoo toothbrush towel_rack
"""

NAMES = st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=2, max_size=60, unique=True)


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_our_own_bank_has_180_names_in_15_groups_at_least_all_distinct() -> None:
    bank = load_prompts("own")
    assert len(bank.classnames) >= 180
    assert len(bank.groups) >= 15
    assert len({name.lower().strip() for name in bank.classnames}) == len(bank.classnames)
    assert all(name == name.strip() != "" for name in bank.classnames)
    assert min(len(names) for names in bank.groups.values()) >= 5


def test_the_papers_bank_is_the_papers() -> None:
    bank = load_prompts("paper")
    assert list(bank.classnames) == [name.replace("_", " ") for name in PAPER.split()]
    assert len(bank.classnames) == 180
    assert bank.templates == ("a photo of a {c}.",)
    assert bank.prompts[0] == "a photo of a cat."
    assert bank.prompts[-1] == "a photo of a towel rack."


def test_our_own_bank_is_not_the_papers() -> None:
    own, paper = set(load_prompts("own").classnames), set(load_prompts("paper").classnames)
    assert len(own & paper) < 0.5 * len(own)


def test_prompts_go_class_by_class_and_names_group_by_group() -> None:
    bank = PromptBank({"pets": ("cat", "dog"), "sky": ("sun",)}, ("a {c}", "the {c} and a {c}"))
    assert bank.classnames == ("cat", "dog", "sun")
    assert bank.prompts == (
        "a cat", "the cat and a cat", "a dog", "the dog and a dog", "a sun", "the sun and a sun",
    )  # fmt: skip


def test_braces_in_names_and_templates_are_only_text() -> None:
    bank = PromptBank({"all": ("{c}", "{0}", "50%")}, ("{x} {c}",))
    assert bank.prompts == ("{x} {c}", "{x} {0}", "{x} 50%")


@settings(deadline=None, max_examples=60)
@given(names=NAMES, every=st.integers(2, 20))
def test_split_shares_no_name_and_loses_none(names: list[str], every: int) -> None:
    bank = PromptBank({"a": tuple(names[:1]), "b": tuple(names[1:])}, ("a {c}", "the {c}"))
    fitted, held = bank.split(every)
    assert not set(fitted.classnames) & set(held.classnames)
    assert sorted([*fitted.classnames, *held.classnames]) == sorted(names)
    assert fitted.templates == held.templates == bank.templates


def test_split_holds_out_every_eighth() -> None:
    fitted, held = PromptBank({"all": tuple("abcdefghijklmnopqrst")}, ("{c}",)).split()
    assert held.classnames == ("h", "p")
    assert fitted.classnames == tuple("abcdefgijklmnoqrst")


def test_split_of_a_short_bank_still_holds_one_out() -> None:
    fitted, held = PromptBank({"all": ("a", "b", "c")}, ("{c}",)).split()
    assert (fitted.classnames, held.classnames) == (("a", "b"), ("c",))


def test_split_of_one_name_gives_it_twice() -> None:
    bank = PromptBank({"all": ("cat",)}, ("{c}",))
    assert bank.split() == (bank, bank)


@pytest.mark.parametrize("bank", ["own", "paper"])
def test_the_shipped_banks_split_without_a_common_name(bank: str) -> None:
    fitted, held = load_prompts(bank).split()
    assert not set(fitted.classnames) & set(held.classnames)
    assert len(held.classnames) == len(load_prompts(bank).classnames) // 8


def test_a_file_in_the_papers_form_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", {"classnames": ["cat", "dög"], "templates": ["a {c}"]})
    assert read_prompts(path) == PromptBank({"all": ("cat", "dög")}, ("a {c}",))


def test_a_file_with_groups_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", {"groups": {"pets": ["cat"], "sky": ["sun"]}, "templates": ["a {c}", "{c}"]})
    assert read_prompts(path) == PromptBank({"pets": ("cat",), "sky": ("sun",)}, ("a {c}", "{c}"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "object"),
        ("cat", "object"),
        (None, "object"),
        ({}, "needs class names and templates"),
        ({"classnames": ["cat"]}, "needs class names and templates"),
        ({"classnames": ["cat"], "templates": []}, "needs class names and templates"),
        ({"classnames": [], "templates": ["a {c}"]}, "needs class names and templates"),
        ({"groups": {}, "templates": ["a {c}"]}, "needs class names and templates"),
        ({"groups": {"pets": []}, "templates": ["a {c}"]}, "needs class names and templates"),
        ({"classnames": ["cat"], "templates": ["a {c}", "a photo"]}, "template without {c}: 'a photo'"),
        ({"classnames": ["cat"], "templates": ["a { c }"]}, "template without {c}: 'a { c }'"),
        ({"classnames": ["cat", "dog", "cat"], "templates": ["{c}"]}, "given twice: 'cat'"),
        ({"groups": {"a": ["cat"], "b": ["cat"]}, "templates": ["{c}"]}, "given twice: 'cat'"),
        ({"classnames": "cat", "templates": ["{c}"]}, "lists of texts"),
        ({"classnames": ["cat"], "templates": "{c}"}, "lists of texts"),
        ({"classnames": ["cat", 3], "templates": ["{c}"]}, "lists of texts"),
        ({"classnames": ["cat"], "templates": [None]}, "lists of texts"),
        ({"classnames": {"cat": 1}, "templates": ["{c}"]}, "lists of texts"),
        ({"groups": ["cat"], "templates": ["{c}"]}, "lists of texts"),
        ({"groups": {"pets": "cat"}, "templates": ["{c}"]}, "lists of texts"),
    ],
)
def test_a_file_that_is_no_bank_is_one_clear_line(data: Any, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", data)
    with pytest.raises(PromptError) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"classnames: [cat]", b'{"templates": ["{c}"],}', b"\xff\xfe{"])
def test_a_file_that_is_not_json_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(PromptError) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}: not JSON: ")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.json", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(PromptError) as error:
            read_prompts(path)
        assert str(error.value) == f"{path}: cannot be read: {reason}"


def test_calibration_texts_are_the_names_in_templates_of_our_own() -> None:
    bank = PromptBank({"all": ("cat", "dog")}, ("the bank's own {c}",))
    texts = calibration_texts(bank, load_templates("generic"), 10**6, seed=0)
    assert len(set(texts)) == len(texts)
    assert sorted(t.replace("dog", "cat") for t in texts if "dog" in t) == sorted(t for t in texts if "cat" in t)
    assert len(texts) == sum("cat" in t for t in texts) + sum("dog" in t for t in texts)
    assert {"a photo of a cat.", "a photo of a dog."} <= set(texts)
    assert not any("own" in text or "{c}" in text for text in texts)


def test_calibration_texts_are_as_many_as_asked_and_none_twice() -> None:
    texts = calibration_texts(load_prompts("own"), load_templates("generic"), 512, seed=0)
    assert len(set(texts)) == len(texts) == 512


def test_calibration_texts_follow_the_seed() -> None:
    bank, templates = load_prompts("own"), load_templates("generic")
    first, again, other = (calibration_texts(bank, templates, 64, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert len(set(first) & set(other)) < 16


def test_calibration_texts_have_many_lengths_and_reach_all_over_the_bank() -> None:
    bank = load_prompts("paper")
    texts = calibration_texts(bank, load_templates("generic"), 512, seed=0)
    assert len({len(text.split()) for text in texts}) >= 8
    # A name misses 512 of 180 x 24 draws with probability about (1 - 512 / 4320)^24 = 0.048.
    assert sum(any(name in text for text in texts) for name in bank.classnames) > 0.9 * 180


def test_captions_are_of_all_lengths_fit_the_context_and_are_the_same_every_time() -> None:
    templates = load_templates("captions")
    assert templates == load_templates("captions")
    assert len(set(templates)) == len(templates) == 24 + 480
    assert templates[:24] == load_templates("generic")
    assert all(template.count("{c}") == 1 and "{" not in template.replace("{c}", "") for template in templates)
    assert not any(re.search(r"\b[Aa] [aeiou]", template) for template in templates[24:])
    lengths = np.array([len(text.split()) for text in templates])
    assert min(lengths) == 1
    assert [(lengths > n).sum() >= 60 for n in (4, 8, 16)] == [True, True, True]
    ids = Tokenizer.openai()([template.replace("{c}", "plate of spaghetti") for template in templates])
    assert (ids.argmax(axis=1) < 77 - 1).all()  # nothing is cut off


def test_the_templates_of_evaluation_sets_are_clip_benchmarks() -> None:
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    theirs = json.loads((Path(builder.__file__).parent / "en_zeroshot_classification_templates.json").read_text())
    for name in ("cifar10", "imagenet1k"):
        assert list(load_templates(name)) == theirs[name]
    assert theirs["cifar10"] == theirs["cifar100"]  # which needs no file of its own
    assert (len(load_templates("cifar10")), len(load_templates("imagenet1k"))) == (18, 80)


@pytest.mark.parametrize("content", [{"templates": ["my {c}", "your {c}"]}, ["my {c}", "your {c}"]])
def test_templates_come_from_a_file(content: object, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    assert load_templates(str(path)) == ("my {c}", "your {c}")


@pytest.mark.parametrize("content", ["{", "[]", '["no place"]', "7", '{"templates": "a {c}"}'])
def test_broken_templates_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(PromptError, match=r"mine\.json"):
        load_templates(str(path))


def test_names_without_another_banks() -> None:
    bank, other = PromptBank({"all": ("cat", "dog", "cow")}, ("{c}",)), PromptBank({"all": ("dog",)}, ("a {c}",))
    assert bank.without(other).classnames == ("cat", "cow")
    assert bank.without(other).templates == ("{c}",)
    assert other.without(bank).classnames == ("dog",)

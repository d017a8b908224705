from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d4c.errors import ImageFileError, UsageError
from d4c.inputs import Preprocess, Tokenizer
from d4c.runtime import Session
from runtime.small_graphs import SIZE, image_tower, text_tower, write_export

PREPROCESS, TOKENIZER = Preprocess(SIZE), Tokenizer.openai()


def picture(seed: int, size: tuple[int, int] = (40, 33)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize(size)


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def session(export: Path) -> Session:
    return Session(export, threads=1)


def test_pictures_and_paths_become_embeddings_of_length_1(session: Session, tmp_path: Path) -> None:
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    given = [picture(0), tmp_path / "1.png", str(tmp_path / "2.png")]
    found = session.encode_image(given)
    expected = unit(image_tower(np.stack([PREPROCESS(picture(i)) for i in range(3)])))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for i, one in enumerate(given):
        np.testing.assert_allclose(session.encode_image(one), expected[i : i + 1], rtol=0, atol=1e-5)


def test_more_pictures_than_a_batch(session: Session) -> None:
    pictures = [picture(i, (32, 32)) for i in range(session.encoder.batch + 2)]
    expected = unit(image_tower(np.stack([PREPROCESS(p) for p in pictures])))
    np.testing.assert_allclose(session.encode_image(pictures), expected, rtol=0, atol=1e-5)


def test_texts_become_embeddings_of_length_1(session: Session) -> None:
    texts = ["a dog", "an old red car", ""]
    expected = unit(text_tower(TOKENIZER(texts)))
    np.testing.assert_allclose(session.encode_text(texts), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(session.encode_text("a dog"), expected[:1], rtol=0, atol=1e-5)
    assert session.encode_text(texts).dtype == np.float32
    assert session.encode_text([]).shape == session.encode_image([]).shape == (0, 8)


def test_of_10000_words_the_beginning_counts_and_the_end_token_stays(session: Session) -> None:
    long = " ".join(["dog"] * 10_000)
    assert np.array_equal(session.encode_text(long), session.encode_text(" ".join(["dog"] * 75)))
    assert not np.allclose(session.encode_text(long), session.encode_text(" ".join(["dog"] * 74)))


LABELS = ["dog", "cat", "red car"]


def test_classify_is_a_softmax_of_scaled_cosines(tmp_path: Path) -> None:
    session = Session(write_export(tmp_path / "e", logit_scale=3.0, template="a {c} and a {c}"))
    pictures = [picture(0), picture(1)]
    images = session.encode_image(pictures).astype(np.float64)
    for template in (None, "{c}!"):
        texts = session.encode_text([(template or "a {c} and a {c}").replace("{c}", label) for label in LABELS])
        logits = 3 * images @ texts.T
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found = session.classify(pictures, LABELS, template)
        assert len(found) == 2
        for row, by_label in zip(expected, found, strict=True):
            assert by_label == pytest.approx(dict(zip(LABELS, row, strict=True)), abs=1e-6)
            assert list(by_label.values()) == sorted(by_label.values(), reverse=True)
            assert sum(by_label.values()) == pytest.approx(1)
    assert session.classify(pictures[0], LABELS) == session.classify(pictures, LABELS)[:1]
    assert session.classify(pictures[0], "dog") == [{"dog": 1.0}]
    assert session.classify([], LABELS) == []


def test_a_siglip_judges_every_label_by_itself(tmp_path: Path) -> None:
    session = Session(write_export(tmp_path / "e", logit_scale=5.0, logit_bias=-2.0, template="{c}"))
    cosines = session.encode_image(picture(0)).astype(np.float64) @ session.encode_text(LABELS).T
    expected = dict(zip(LABELS, (1 / (1 + np.exp(2 - 5 * cosines)))[0], strict=True))
    assert session.classify(picture(0), LABELS)[0] == pytest.approx(expected, abs=1e-6)
    assert session.classify(picture(0), ["cat"])[0]["cat"] == pytest.approx(expected["cat"], abs=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_extreme_scales_give_probabilities(scale: float, tmp_path: Path) -> None:
    for kind, bias in (("softmax", None), ("sigmoid", -1e6)):
        session = Session(write_export(tmp_path / kind, logit_scale=scale, logit_bias=bias))
        values = np.asarray(list(session.classify(picture(0), LABELS)[0].values()))
        assert np.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize(
    ("labels", "template", "words"),
    [
        ([], None, "there are no labels"),
        ([""], None, "a label is empty"),
        (["dog", " \t"], None, "a label is empty"),
        (["dog", "cat", "dog"], None, "labels 'dog' and 'dog' are the same to this model"),
        (["Dog", "dog "], None, "labels 'Dog' and 'dog ' are the same to this model"),
        (["x " * 100, "x " * 101], None, "are the same to this model"),
        (["dog"], "a photo", "template without {c}: 'a photo'"),
        (["dog", 3], None, "a text, not int"),
        (["\udce4"], None, "not a text in Unicode"),  # a byte of the command line that is no UTF-8
    ],
)
def test_labels_that_make_no_sense_are_the_users_error(
    labels: list[Any], template: str | None, words: str, session: Session
) -> None:
    with pytest.raises(UsageError) as error:
        session.classify(picture(0), labels, template)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_picture_is_named(session: Session, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file: nowhere"):
        session.encode_image([picture(0), "nowhere.png"])
    with pytest.raises(UsageError, match="a picture or a path to one, not int"):
        session.encode_image([3])  # type: ignore[list-item]
    picture(0).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:100])
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.png", "text.png"):
        with pytest.raises(ImageFileError, match=rf"{name}: not a picture that can be read") as error:
            session.encode_image([tmp_path / "whole.png", tmp_path / name])
        assert "\n" not in str(error.value)


def test_a_monstrous_picture_is_named(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # a bomb is more than twice as many
    with pytest.raises(ImageFileError, match=r"huge\.png: .*exceeds limit"):
        session.encode_image(tmp_path / "huge.png")


def test_a_deep_picture_is_its_shallow_twin(session: Session, tmp_path: Path) -> None:
    grey = np.asarray(picture(0).convert("L"))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    shallow, deep = session.encode_image([tmp_path / "8.png", tmp_path / "16.png"])
    assert np.array_equal(shallow, deep)

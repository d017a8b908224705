import json
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from d4c.evaluate.agreement import agreement, evaluate_without_data, tower_error
from d4c.inputs import Preprocess, Tokenizer

Array = NDArray[np.float32]


def rows(*values: tuple[float, ...]) -> Array:
    return np.array(values, np.float32)


def test_tower_error_by_hand() -> None:
    # z̄ = (2, 0), so ||z - z̄||² = 1 + 1; only the first row moved, by (0, 1). Cosines: 1 / sqrt(2) and 1.
    error = tower_error(rows((1, 0), (3, 0)), rows((1, 1), (3, 0)))
    assert error.centred_error == pytest.approx(1 / np.sqrt(2))
    assert error.cosine_mean == pytest.approx((np.sqrt(0.5) + 1) / 2)
    # One hundredth of the way from the lowest of two values to the other.
    assert error.cosine_p01 == pytest.approx(np.sqrt(0.5) + 0.01 * (1 - np.sqrt(0.5)))


def test_centred_error_sees_what_cosine_does_not() -> None:
    # All rows collapse onto their mean, far from the origin: what told them apart is gone, cosines are still near 1.
    z = rows((100, 1), (100, -1), (100, 2), (100, -2))
    error = tower_error(z, np.tile(z.mean(axis=0), (4, 1)))
    assert error.centred_error == pytest.approx(1)
    assert error.cosine_p01 > 0.999


def test_length_counts_in_the_error_and_not_in_the_cosine() -> None:
    error = tower_error(rows((1, 0), (-1, 0)), rows((2, 0), (-2, 0)))
    assert error.centred_error == pytest.approx(1)  # moved by 1, spread 1
    assert (error.cosine_mean, error.cosine_p01) == (1, 1)


def test_the_first_percentile_is_the_second_worst_of_101() -> None:
    z = np.tile(rows((1, 0)), (101, 1)) + 0.01 * np.arange(101, dtype=np.float32)[:, None]
    turned = z.copy()
    turned[40:42] = turned[40:42, ::-1] * (1, -1)  # two rows at right angles to what they were
    error = tower_error(z, turned)
    assert error.cosine_p01 == pytest.approx(0, abs=1e-6)
    assert error.cosine_mean == pytest.approx(99 / 101)


@pytest.mark.parametrize("num", [1, 5])
def test_equal_embeddings_have_no_error(num: int) -> None:
    z = np.random.default_rng(0).standard_normal((num, 8)).astype(np.float32)
    error = tower_error(z, z.copy())
    assert error.centred_error == 0
    assert error.cosine_p01 == pytest.approx(1)


# Five queries, three candidates; margins between best and second: 0.5, 0.1, 0.3, 0.2, 0.4.
SCORES = rows((0.9, 0.4, 0), (0.2, 0, 0.1), (0, 0.7, 0.4), (0.1, 0.3, 0), (0, 0.5, 0.9))
BEST = [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("flipped", "low", "high"),
    [
        # The lower half of five is three: the margins 0.1, 0.2 and 0.3 of queries 1, 3 and 2.
        ([], 1, 1),
        ([1], 2 / 3, 1),
        ([1, 2, 3], 0, 1),
        ([0], 1, 1 / 2),
        ([0, 4, 2], 2 / 3, 0),
    ],
)
def test_agreement_by_hand(flipped: list[int], low: float, high: float) -> None:
    assert SCORES.argmax(axis=1).tolist() == BEST
    changed = SCORES.copy()
    for query in flipped:
        changed[query, BEST[query]] = -1
    found = agreement(SCORES, changed)
    assert found.all == pytest.approx(1 - len(flipped) / 5)
    assert (found.low_margin, found.high_margin) == pytest.approx((low, high))


def test_margins_are_the_float_models() -> None:
    # Query 0 has the float margin 0.1 and query 1 has 0.8; after quantization it is the other way round.
    reference, changed = rows((0.5, 0.4), (0.9, 0.1)), rows((0, 0.9), (0.5, 0.4))
    found = agreement(reference, changed)
    assert (found.all, found.low_margin, found.high_margin) == (0.5, 0, 1)


def test_one_candidate_and_one_query_are_survived() -> None:
    single = agreement(rows((0.5,), (0.1,)), rows((0.1,), (0.5,)))
    assert (single.all, single.low_margin, single.high_margin) == (1, 1, 1)
    query = agreement(rows((0.5, 0.1)), rows((0.1, 0.5)))
    assert (query.all, query.low_margin, query.high_margin) == (0, 0, 0)


@dataclass(frozen=True)
class Linear:
    """An encoder whose embeddings are a picture's mean over pixels, or the ids, times a matrix."""

    image: Array
    text: Array

    @property
    def preprocess(self) -> Preprocess:
        raise NotImplementedError

    @property
    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    def encode_image(self, pixels: Array) -> Array:
        return pixels.mean(axis=(2, 3)) @ self.image

    def encode_text(self, ids: NDArray[np.int64]) -> Array:
        return ids.astype(np.float32) @ self.text


SAME, SWAPPED = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[1, 0, 2]]
FLOAT = Linear(SAME, SAME)
BANK = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])  # prompts along the axes


def flat(*colours: tuple[float, float, float]) -> Array:
    """Pictures of one colour each, [image, 3, 4, 4]."""
    return np.tile(rows(*colours)[:, :, None, None], (1, 1, 4, 4))


SETS = {
    "swapped": flat((1, 0.2, 0), (0.2, 1, 0), (0, 0.1, 1), (0, 0.2, 1)),  # of two the best prompt is 0 or 1
    "spared": flat((0.4, 0.5, 1), (0.5, 0.4, 1), (0.4, 0.4, 1), (0.5, 0.5, 1)),  # the best prompt is 2
}


def test_identical_encoders_agree_on_everything() -> None:
    result = evaluate_without_data(FLOAT, Linear(SAME, SAME), SETS, BANK, BANK)
    assert result["worst"] == {
        "image_centred_error": 0, "text_centred_error": 0, "image_top1": 1, "text_top1": 1, "top1": 1,
        "mixed_index": 1,
    }  # fmt: skip
    assert result["text"] == {"centred_error": 0, "cosine_mean": 1, "cosine_p01": 1}


def test_a_changed_image_tower_by_hand() -> None:
    result = evaluate_without_data(FLOAT, Linear(SWAPPED, SAME), SETS, BANK, BANK)
    swapped, spared = result["sets"]["swapped"], result["sets"]["spared"]
    assert [swapped[k]["all"] for k in ("image_top1", "text_top1", "top1")] == [0.5, 1, 0.5]
    assert [spared[k]["all"] for k in ("image_top1", "text_top1", "top1")] == [1, 1, 1]
    assert [s["mixed_index"]["all"] for s in (swapped, spared)] == [1, 1]  # float gallery, float prompts
    assert result["text"]["centred_error"] == 0
    assert result["worst"]["image_top1"] == result["worst"]["top1"] == 0.5
    # Swapped: z̄ = (0.3, 0.375, 0.5). Rows move by 0.8 sqrt(2) twice, 0.1 sqrt(2), 0.2 sqrt(2): sum of squares 2.66.
    spread = 0.7**2 + 0.1**2 + 2 * 0.3**2 + 0.175**2 + 0.625**2 + 0.275**2 + 0.175**2 + 4 * 0.5**2
    assert swapped["image"]["centred_error"] == pytest.approx(np.sqrt(2.66 / spread))
    assert result["worst"]["image_centred_error"] == pytest.approx(max(s["image"]["centred_error"]
                                                                      for s in result["sets"].values()))  # fmt: skip


def test_a_changed_text_tower_by_hand() -> None:
    # Prompts 0 and 1 change places. In "swapped" the float gallery's best images for prompts 0, 1, 2 are 0, 1, 2.
    result = evaluate_without_data(FLOAT, Linear(SAME, SWAPPED), SETS, BANK, BANK[:2])
    swapped, spared = result["sets"]["swapped"], result["sets"]["spared"]
    assert [swapped[k]["all"] for k in ("image_top1", "text_top1", "top1")] == [1, 0.5, 0.5]
    assert swapped["mixed_index"]["all"] == pytest.approx(1 / 3)
    assert spared["text_top1"]["all"] == 1
    # Held-out texts (1, 0, 0) and (0, 1, 0): both move by sqrt(2), both lie sqrt(1/2) from their mean.
    assert result["text"]["centred_error"] == pytest.approx(2)
    assert result["text"]["cosine_mean"] == pytest.approx(0)
    assert result["worst"]["text_centred_error"] == result["text"]["centred_error"]
    assert result["worst"]["mixed_index"] == pytest.approx(min(s["mixed_index"]["all"] for s in (swapped, spared)))


def test_towers_that_change_alike_disagree_only_with_a_float_gallery() -> None:
    result = evaluate_without_data(FLOAT, Linear(SWAPPED, SWAPPED), SETS, BANK, BANK)
    swapped = result["sets"]["swapped"]
    assert swapped["top1"]["all"] == 1
    assert swapped["image_top1"]["all"] == swapped["text_top1"]["all"] == 0.5
    assert swapped["mixed_index"]["all"] == pytest.approx(1 / 3)


def test_lengths_of_embeddings_decide_nothing() -> None:
    longer = Linear(7 * SAME, 3 * SAME)
    result = evaluate_without_data(FLOAT, longer, SETS, BANK, BANK)
    assert [result["worst"][k] for k in ("image_top1", "text_top1", "top1", "mixed_index")] == [1, 1, 1, 1]
    assert result["worst"]["image_centred_error"] > 1


@pytest.mark.parametrize("order", [("swapped", "spared"), ("spared", "swapped")])
def test_a_tower_that_puts_out_no_numbers_is_not_called_good(order: tuple[str, str]) -> None:
    class Broken(Linear):
        def encode_image(self, pixels: Array) -> Array:
            z = super().encode_image(pixels)
            return z * np.float32(np.nan) if np.array_equal(pixels, SETS["spared"]) else z

    result = evaluate_without_data(FLOAT, Broken(SAME, SAME), {name: SETS[name] for name in order}, BANK, BANK)
    assert np.isnan(result["worst"]["image_centred_error"])


def test_the_result_is_json() -> None:
    result = evaluate_without_data(FLOAT, Linear(SWAPPED, SWAPPED), SETS, BANK, BANK)
    assert json.loads(json.dumps(result)) == result
    assert set(result) == {"text", "sets", "worst"}
    assert set(result["sets"]["spared"]) == {"image", "image_top1", "text_top1", "top1", "mixed_index"}

import re
from pathlib import Path
from typing import Any

from d4c.experiments.analyze import answers
from d4c.experiments.analyze.page import page, sentences

ABOUT: dict[str, Any] = {
    "model": "<model>",
    "recipe": "w4a8",
    "seed": 0,
    "threads": 1,
    "device": "cpu",
    "reference": "real",
    "calibrate_on": "noise",
    "dataset": None,
    "versions": {"d4c": "0", "torch": "0"},
    "sets": {"real": {"source": "folder", "images": 4}, "noise": {"source": "noise", "images": 4}},
}


def cell(error: float, points: float) -> dict[str, float]:
    fraction = points / 100
    return {
        "centred_error": error, "acc1_float": 0.25, "acc1": 0.25 + fraction, "acc1_difference": fraction,
        "acc1_standard_error": 0.004,
    }  # fmt: skip


TEXT_MLP = {
    "nearest": {"32": cell(0.1, -0.1), "8": cell(0.1, -0.2), "4": cell(0.3, -2.0)},
    "learned": {"32": cell(0.1, 0.0), "8": cell(0.1, 0.1), "4": cell(0.2, -0.4)},
}


def test_the_page_needs_nothing_else_and_escapes(tmp_path: Path) -> None:
    (tmp_path / "text-mlp.png").write_bytes(b"picture")
    html = page({"about": ABOUT, "text-mlp": TEXT_MLP}, {"text-mlp": tmp_path / "text-mlp.png"})
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in html
    assert not re.search(r"(src|href)=\"(?!data:)|https?:|<script", html)
    assert "&lt;model&gt;" in html
    assert "<model>" not in html
    assert html.count("<h2>") == 1


def test_the_fewest_bits_are_those_within_half_a_point_of_eight() -> None:
    text = answers.text_mlp(TEXT_MLP, ABOUT)
    # learned: 8 bits +0.1, 4 bits -0.4: just half a point; nearest: -0.2 against -2.0
    assert any("learned rounding, one seed, on this set: 4 bits are the fewest" in sentence for sentence in text)
    assert any("round-to-nearest, one seed, on this set: 8 bits are the fewest" in sentence for sentence in text)
    assert any("4 -0.40 ± 0.40" in sentence for sentence in text)


def test_a_set_too_small_to_tell_half_a_point_decides_nothing() -> None:
    noisy = {**TEXT_MLP["learned"], "3": cell(0.4, 0.2) | {"acc1_standard_error": 0.0066}}
    text = " ".join(answers.text_mlp({"nearest": TEXT_MLP["nearest"], "learned": noisy}, ABOUT))
    assert "learned rounding, one seed, on this set: 4 bits are the fewest" in text
    assert "At 3 bits the standard error is above half a point" in text


def test_transfer_names_the_worst_pair_and_the_gap_to_the_reference() -> None:
    rows = {
        "real": {"errors": {"real": 0.2, "noise": 0.6}},
        "noise": {"errors": {"real": 0.3, "noise": 0.2}},
    }
    text = answers.transfer({"w4a8": rows}, ABOUT)
    assert "real judged on noise, 3.00 times" in text[0]
    assert "real 0.200, noise 0.300" in text[1]


def test_divergences_between_all_sets_stand_in_a_table() -> None:
    table = answers.coverage_table({"kl": {"a": {"a": 0.0, "b": 0.5}, "b": {"a": 0.25, "b": 0.0}}})
    assert table == [["KL(row ‖ column), nats", "a", "b"], ["a", "0.000", "0.500"], ["b", "0.250", "0.000"]]


def test_no_reference_no_comparison() -> None:
    assert "No set was named" in answers.feature_map({"distances": None}, ABOUT | {"reference": None})[0]
    assert sentences({"about": ABOUT}) == []

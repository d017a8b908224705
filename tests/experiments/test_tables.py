import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from d4c.experiments.tables import as_json, markdown, paired_p, plot, rows_of


def result(method: str, seed: int, both: str, image: str, plain: str = "1110") -> dict[str, Any]:
    """A cell on four images, of which the float model has three right."""
    predictions = {
        name: {"acc1": right.count("1") / len(right), "right": right, "score_error": 0.125 + 0.25 * seed}
        for name, right in (("float", plain), ("both", both), ("image", image))
    }
    learned = {"4": {"codes_changed": 0.25, "error_ratio": 0.5}, "8": {"codes_changed": 0.75, "error_ratio": 1.0}}
    return {
        "cell": {"model": "m", "label": "r", "method": method, "seed": seed},
        "predictions": predictions,
        "reconstruction": {"image": learned, "text": {}},
    }


RESULTS = [
    result("noise", 0, "0110", "1110"), result("noise", 1, "0010", "1110"), result("d4c-3", 0, "1110", "1111"),
    result("d4c-3", 1, "1110", "1110"),
]  # fmt: skip


def test_means_spreads_and_leads_by_hand() -> None:
    rows = {(row.tower, row.method): row for row in rows_of(RESULTS)}
    noise, ours = rows["both", "noise"], rows["both", "d4c-3"]
    assert noise.losses == (-25, -50)  # one and two images of four
    assert noise.mean == -37.5
    assert noise.spread == pytest.approx(12.5 * math.sqrt(2))
    assert (noise.against, ours.against) == (None, "noise")
    assert ours.difference == pytest.approx(37.5)
    # Differences 25 and 50: mean 37.5, standard error 12.5, t = 3 with one degree of freedom: p = 2 atan(1/3) / pi.
    assert ours.p == pytest.approx(2 * math.atan(1 / 3) / math.pi)
    assert rows["image", "d4c-3"].losses == (25, 0)
    assert (noise.codes_changed, noise.error_ratio) == (0.25, 0.5)  # of the fewest bits


def test_the_test_images_error_is_that_of_their_mean_over_seeds() -> None:
    (row,) = [r for r in rows_of(RESULTS) if (r.tower, r.method) == ("both", "noise")]
    # Differences to float, averaged over both seeds: -1, -1/2, 0, 0; their deviation sqrt(11/48), over sqrt(4) images.
    assert row.image_error == pytest.approx(100 * math.sqrt(11 / 48) / 2)


def test_one_seed_has_no_spread_and_no_test() -> None:
    (row, *_) = rows_of(RESULTS[:1])
    assert math.isnan(row.spread)
    assert math.isnan(row.p)
    assert math.isnan(paired_p([0.5, 0.5]))  # nothing varies
    assert as_json([row], RESULTS[:1])["rows"][0]["spread"] is None  # JSON has no NaN


def test_what_a_model_cannot_have_is_listed_with_its_reason() -> None:
    refused = {"cell": {"model": "m", "label": "r", "method": "bns", "seed": 0}, "refused": "needs BatchNorms"}
    results = [*RESULTS, refused]
    rows = rows_of(results)
    assert {row.method for row in rows} == {"noise", "d4c-3"}
    text = markdown(rows, results)
    assert "- not possible: m, bns: needs BatchNorms" in text
    assert as_json(rows, results)["refused"] == [{**refused["cell"], "reason": "needs BatchNorms"}]
    assert as_json(rows, results)["float"] == {"m": 0.75}


def test_the_table_says_what_the_rows_say() -> None:
    text = markdown(rows_of(RESULTS), RESULTS)
    assert "### m, r, both towers quantized (float 75.00%)" in text
    assert "| noise | -37.50 ± 17.68 | 23.94 | 0.250 |  | 25% | 0.50 |" in text
    assert "| d4c-3 | +0.00 ± 0.00 | 0.00 | 0.250 | +37.50 (0.20) | 25% | 0.50 |" in text


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(rows_of(RESULTS), tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as picture:
        assert min(picture.size) > 100

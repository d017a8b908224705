from typing import Any

import pytest
import yaml

from d4c.package import model_card


def report(model: str = "ViT-B/32", source: str = "d4c") -> dict[str, Any]:
    return {
        "model": model,
        "size": {"before_bytes": 4_000_000, "after_bytes": 700_000, "ratio": 0.175},
        "coverage": {"parameters": 1000, "by_bits": {"8": 240, "4": 750, "32": 10}},
        "images": {"count": 128, "source": source},
        "texts": 512,
        "templates": "cifar10",
        "evaluation": {"worst": {"image_centred_error": 0.25, "text_centred_error": 0.125, "top1": 0.9375}},
    }


def card(runs_as: str = "integers", **about: str) -> tuple[dict[str, Any], str]:
    """Front matter as YAML readers see it, and the text below."""
    written = model_card(report(**about), {"recipe": "w4a8", "runs_as": runs_as})
    empty, front, body = written.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


@pytest.mark.parametrize("model", ["tiny", "ViT-B/32", "ViT-B-32__laion2b_s34b_b79k", "local-dir:models/my clip"])
def test_the_front_matter_says_what_hugging_face_asks(model: str) -> None:
    front, body = card(model=model)
    assert front["base_model"] == model
    assert front["base_model_relation"] == "quantized"
    assert front["library_name"] == "d4c"
    assert front["pipeline_tag"] == "zero-shot-image-classification"
    assert "quantized" in front["tags"]
    assert f"# {model}, quantized with d4c's recipe `w4a8`" in body


@pytest.mark.parametrize(
    "model", ["local-dir:a: b", "local-dir:clip #2", "local-dir:clip:", "*.pt", "{best}.pt", "'best'.pt"]
)
def test_names_that_mean_something_in_yaml_stay_names(model: str) -> None:
    assert card(model=model)[0]["base_model"] == model


def test_the_figures_are_the_reports() -> None:
    body = card()[1]
    assert "| parameters | 75.0% at 4 bits, 24.0% at 8 bits, 1.0% at 32 bits |" in body
    assert "| file | 0.7 MB, 0.175 of the 4.0 MB in float32 |" in body
    assert "| calibrated with | 128 images: d4c; 512 texts, templates: cifar10 |" in body
    assert "| image tower, worst centred error | 0.2500 |" in body
    assert "| text tower, centred error | 0.1250 |" in body
    assert "| same best prompt, both towers quantized, worst set | 93.8% |" in body


@pytest.mark.parametrize(("runs_as", "words"), [
    ("integers", "computes in integers"), ("storage", "not faster"), ("simulation", "no integer kernel"),
])  # fmt: skip
def test_what_it_runs_as_is_not_overstated(runs_as: str, words: str) -> None:
    body = card(runs_as)[1]
    assert [w in body for w in ("computes in integers", "not faster", "no integer kernel")].count(True) == 1
    assert words in body


def test_real_pictures_are_not_called_data_free() -> None:
    assert "data-free" in card(source="d4c")[0]["tags"]
    assert "data-free" not in card(source="folder")[0]["tags"]

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from d4c.artifact import Exported
from d4c.export import LAYOUTS

Exports = Callable[..., tuple[Path, Exported]]


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter as YAML readers see it, and the text below."""
    empty, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_card_says_what_it_is_and_what_was_measured(exports: Exports, layout: str) -> None:
    folder, exported = exports("vit", layout)
    front, body = card(folder)
    assert front["base_model"] == exported.source
    assert front["base_model_relation"] == "quantized"
    assert front["pipeline_tag"] == "zero-shot-image-classification"
    assert front["library_name"] == LAYOUTS[layout].library
    assert front["tags"] == ["clip", "quantized", "data-free"]
    assert "recipe `w4a8`" in body
    for words in ("at 4 bits", "calibrated with | 4 images: noise", "worst centred error", "same best prompt"):
        assert words in body
    assert exported.fingerprint in body
    assert str(exported.content_sha256) in body
    assert str(folder.parent) not in body  # nothing of the maker's disk


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_card_of_a_float_model_claims_no_quantization(exports: Exports, layout: str) -> None:
    front, body = card(exports("resnet", layout, "float")[0])
    assert "base_model_relation" not in front
    assert front["tags"] == ["clip"]
    assert "in float32" in body
    assert "recipe" not in body
    assert "Integer products" not in body


def test_the_open_clip_card_says_that_activations_are_float(exports: Exports) -> None:
    for recipe in ("w4a8", "w4"):
        assert "**Activations are float here**" in card(exports("vit", "open_clip", recipe)[0])[1]

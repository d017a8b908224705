import numpy as np
import pytest

from conftest import RESNET, SIGLIP, VIT
from d4c.artifact.open_clip_names import renamed_arrays
from d4c.artifact.transformers_names import transformers_name_table
from d4c.models.clip import build_towers


@pytest.mark.parametrize("config", [VIT, SIGLIP], ids=["clip", "siglip"])
def test_every_parameter_has_one_name(config) -> None:  # type: ignore[no-untyped-def]
    image, text = build_towers(config)
    ours = {*(f"image.{n}" for n in image.state_dict()), *(f"text.{n}" for n in text.state_dict()), "logit_scale"}
    named = [name for entry in transformers_name_table(config) for name in entry.ours]
    assert len(named) == len(set(named))
    assert set(named) - {"logit_bias"} == ours
    assert ("logit_bias" in named) == (config is SIGLIP)


def test_parameters_of_transformers_have_their_layout() -> None:
    table = [entry for entry in transformers_name_table(SIGLIP) if entry.theirs.startswith("vision_model.head")]
    state = {name: np.arange(float(len(name))) for entry in table for name in entry.ours}
    state["image.pool.probe"] = np.ones((1, 4))
    theirs = renamed_arrays(table, state)
    assert theirs["vision_model.head.probe"].shape == (1, 1, 4)
    # q above k above v
    expected = np.concatenate([state[f"image.pool.{letter}.bias"] for letter in "qkv"])
    np.testing.assert_array_equal(theirs["vision_model.head.attention.in_proj_bias"], expected)


def test_a_resnet_has_no_names_there() -> None:
    with pytest.raises(ValueError, match="no ModifiedResNet"):
        transformers_name_table(RESNET)

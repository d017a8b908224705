"""A `local-dir:` folder of open_clip, with the integers' values as float weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from d4c.artifact.architecture import ResNetConfig
from d4c.artifact.exported import FLOAT_RECIPE, ExportedTower, Storage
from d4c.artifact.open_clip_names import Entry, name_table, open_clip_model_cfg, renamed_arrays
from d4c.errors import UnsupportedModelError
from d4c.export.layouts.files import write_json
from d4c.export.layouts.layout import Layout, Towers
from d4c.export.source import Source

WEIGHTS = "open_clip_model.safetensors"
BATCH_NORM_EPS = 1e-5  # of torch's BatchNorm2d


def write(source: Source, folder: Path, _: Sequence[Storage]) -> Towers:
    """open_clip_config.json and open_clip_model.safetensors; both towers are one file, and no graph."""
    try:
        model_cfg = open_clip_model_cfg(source.config)
    except ValueError as error:
        raise UnsupportedModelError(f"{source.name} cannot be exported to open_clip: {error}") from error
    state = with_batch_norms(source)
    if "logit_bias" in state:
        model_cfg["init_logit_bias"] = float(state["logit_bias"])
    model_cfg["text_cfg"] |= _tokenizer_options(source)
    preprocess = source.preprocess
    settings = {"mean": preprocess.mean, "std": preprocess.std, "interpolation": preprocess.interpolation}
    write_json(folder / "open_clip_config.json", {
        "model_cfg": model_cfg, "preprocess_cfg": settings | {"resize_mode": preprocess.resize_mode}
    })  # fmt: skip
    table = [*name_table(source.config), *([Entry("logit_bias", ("logit_bias",))] if "logit_bias" in state else [])]
    arrays = renamed_arrays(table, state)
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}, folder / WEIGHTS)
    return Towers(
        ExportedTower({"float": WEIGHTS}, "image", "image_features"),
        ExportedTower({"float": WEIGHTS}, "text", "text_features"),
        fixed_length=True,
    )


def with_batch_norms(source: Source) -> dict[str, NDArray[Any]]:
    """Parameters in which each convolution's bias is that of a BatchNorm that changes nothing else.

    Mean 0, variance 1 - eps and weight 1: the sum variance + eps is 1 in float32, so x passes unchanged.
    """
    state = dict(source.arrays)
    if not isinstance(source.config.image, ResNetConfig):
        return state
    for name, bias in source.arrays.items():
        parent, _, convolution = name.removesuffix(".bias").rpartition(".")
        if not name.endswith(".bias") or not convolution.startswith("conv"):
            continue
        norm = f"{parent}.{convolution.replace('conv', 'bn')}"
        ones = np.ones_like(bias, np.float32)
        state |= {f"{norm}.weight": ones, f"{norm}.bias": bias, f"{norm}.running_mean": 0 * ones}
        state[f"{norm}.running_var"] = ones - np.float32(BATCH_NORM_EPS)
    return state


def _tokenizer_options(source: Source) -> dict[str, Any]:
    """How open_clip shall read the tokenizer of the folder; OpenAI's it brings along."""
    cleaning = source.tokenizer.cleaning
    if cleaning == "open_clip":
        return {}
    options: dict[str, Any] = {"hf_tokenizer_name": "tokenizer.json of this folder"}
    if cleaning.startswith("open_clip_"):
        options["tokenizer_kwargs"] = {"clean": cleaning.removeprefix("open_clip_")}
    return options


def usage(source: Source) -> str:
    """How to load it."""
    note = "Weights are float32."
    if source.recipe != FLOAT_RECIPE:
        note = """Weights are float32 and hold exactly the values of the integers. **Activations are float here**: a
recipe that quantizes weights alone is met exactly, one that quantizes activations too only in part. Nothing is smaller
or faster than the float model; it is meant for programs that know open_clip alone."""
    return f"""```python
import open_clip
model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
```

{note}
"""


LAYOUT = Layout("open_clip", "open_clip", "open_clip", "int64", False, write, usage, float_weights=True)

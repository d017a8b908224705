"""Ways to make calibration images that the literature compares, by name: what each changes in `[synthesize]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from d4c.errors import UnknownNameError
from d4c.recipes.recipe import Synthesize

_D4C = {"method": "d4c", "prompt_contrast": 1.0}
_BASELINE = {"method": "d4c", "prompt_contrast": 0.0, "structural_contrast": False, "perturbation": False}
# PSAQ-ViT (arXiv:2203.02250): 500 steps in each of two rounds, rolled by up to 15 and 30 of 224 pixels, one batch of
# 32. Its class term needs a head: the prompts at CLIP's own temperature stand in for one.
_PSAQ = {
    "method": "d4c", "prompt_contrast": 1.0, "temperature": 0.01, "structural_contrast": False, "perturbation": False,
    "patch_similarity": 1.0, "patch_similarity_of": "values", "total_variation": 0.0, "variation_distance": 0.05,
    "jitter": 30 / 224, "batch": 32, "rounds": 2, "steps": 1000, "learning_rate": 0.2, "beta1": 0.5, "beta2": 0.9,
    "schedule": "cosine", "warm_up": 0.2, "start": "noise", "valid_pixels": True, "momentum_drift": False,
    "parametrization": "pixels", "coarse_to_fine": False, "noise": 0.0,
}  # fmt: skip

METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "noise": {"method": "noise"},
        "one_over_f": {"method": "one_over_f"},
        "dead_leaves": {"method": "dead_leaves"},
        "bns": {**_BASELINE, "batchnorm_statistics": 1.0},
        "pse": {**_BASELINE, "coarse_to_fine": False, "patch_similarity": 1.0, "patch_similarity_of": "inputs"},
        "psaq": _PSAQ,
        "d4c-0": {**_D4C, "structural_contrast": False, "perturbation": False},
        "d4c-1": {**_D4C, "structural_contrast": True, "perturbation": False},
        "d4c-2": {**_D4C, "structural_contrast": False, "perturbation": True},
        "d4c-3": {**_D4C, "structural_contrast": True, "perturbation": True},
    }
)


def with_method(config: Synthesize, name: str) -> Synthesize:
    """The same settings with another way to make images.

    Args:
        name: a procedure ("noise", "one_over_f", "dead_leaves"); "bns", "pse", "psaq"; or "d4c-N", N being the paper's
            `--d4c_config`: 0 prompts alone, 1 with structural contrast, 2 with perturbation, 3 with both.

    Raises:
        UnknownNameError: no such method.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return dataclasses.replace(config, **METHODS[name])

"""SigLIP's image towers under the names that timm gives them and open_clip's configurations mention."""

from __future__ import annotations

import re
from typing import Any

from d4c.artifact.architecture import VisionTransformerConfig
from d4c.errors import UnsupportedModelError

# width, layers, heads, width of the MLP over that of the tower (timm 1.0, models/vision_transformer.py)
_SIZES = {
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
# The others compute exact GELU there, although all were trained with the approximation.
_TANH = {"base_patch32_256", "large_patch16_512", "so400m_patch16_256", "so400m_patch16_384", "so400m_patch16_512",
         "giantopt_patch16_256", "giantopt_patch16_384"}  # fmt: skip
_NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(\d+)")
_OPTIONS = {"timm_pool": "map", "timm_proj": "none"}


def image_config_from_timm(vision: dict[str, Any], source: str) -> VisionTransformerConfig:
    """Translate a `vision_cfg` that names one of timm's models.

    Raises:
        UnsupportedModelError: it is not one of SigLIP's, or it is put together in another way.
    """
    name = vision["timm_model_name"]
    match = _NAME.fullmatch(name)
    if match is None:
        raise UnsupportedModelError(f"{source}: vision_cfg option timm_model_name = {name} is not supported")
    for option, expected in _OPTIONS.items():
        if vision.get(option) != expected:
            raise UnsupportedModelError(f"{source}: vision_cfg option {option} = {vision.get(option)} is not supported")
    kind, patch, size = match[1], int(match[2]), int(match[3])
    if vision.get("image_size", 224) not in (size, [size, size]):
        raise UnsupportedModelError(f"{source}: {name} sees {size} pixels, image_size = {vision.get('image_size')}")
    width, layers, heads, ratio = _SIZES[kind]
    return VisionTransformerConfig(
        image_size=size,
        patch_size=patch,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=int(width * ratio),
        activation="gelu_tanh" if f"{kind}_patch{patch}_{size}" in _TANH else "gelu",
        norm_eps=1e-6,
        pre_norm=False,
        pooling="attention",
        class_token=False,
        patch_bias=True,
        projection=False,
    )

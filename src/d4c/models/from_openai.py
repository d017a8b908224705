"""OpenAI's own files: a TorchScript archive or a plain state dict, the shape read off the parameters."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from d4c.artifact.architecture import ClipConfig, ResNetConfig, TextConfig, VisionTransformerConfig
from d4c.errors import ModelFileError
from d4c.inputs import Preprocess
from d4c.models.clip import Clip
from d4c.models.from_open_clip import clip_from_open_clip_state
from d4c.models.weight_files import read_tensors

HEAD_WIDTH = 64


def load_file(path: Path) -> Clip:
    """Load a `.pt` or `.safetensors` file in OpenAI's naming.

    Raises:
        ModelFileError: the file cannot be read or its parameters are not those of an OpenAI CLIP.
    """
    tensors = read_tensors(path)
    config = config_from_state(tensors, str(path))
    return clip_from_open_clip_state(config, tensors, Preprocess(config.image.image_size), str(path))


def config_from_state(tensors: dict[str, Tensor], source: str) -> ClipConfig:
    """Read the architecture off the shapes, as OpenAI's loader does: QuickGELU, heads of 64 channels.

    Raises:
        ModelFileError: a parameter that every OpenAI CLIP has is missing.
    """
    try:
        text_width = tensors["ln_final.weight"].shape[0]
        text = TextConfig(
            context_length=tensors["positional_embedding"].shape[0],
            vocab_size=tensors["token_embedding.weight"].shape[0],
            width=text_width,
            layers=_count(tensors, "transformer.resblocks.", 2),
            heads=max(1, text_width // HEAD_WIDTH),
            mlp_width=tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            activation="quick_gelu",
        )
        image = _vit(tensors) if "visual.proj" in tensors else _resnet(tensors)
        return ClipConfig(tensors["text_projection"].shape[1], image, text)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelFileError(f"{source}: not the parameters of an OpenAI CLIP: {error}") from error


def _vit(tensors: dict[str, Tensor]) -> VisionTransformerConfig:
    width, patch = tensors["visual.conv1.weight"].shape[0], tensors["visual.conv1.weight"].shape[-1]
    side = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return VisionTransformerConfig(
        image_size=patch * side,
        patch_size=patch,
        width=width,
        layers=_count(tensors, "visual.transformer.resblocks.", 3),
        heads=max(1, width // HEAD_WIDTH),
        mlp_width=tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        activation="quick_gelu",
    )


def _resnet(tensors: dict[str, Tensor]) -> ResNetConfig:
    width = tensors["visual.layer1.0.conv1.weight"].shape[0]
    side = round((tensors["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    stages = [_count(tensors, f"visual.layer{stage}.", 2) for stage in (1, 2, 3, 4)]
    return ResNetConfig(
        image_size=32 * side,
        width=width,
        layers=(stages[0], stages[1], stages[2], stages[3]),
        heads=max(1, width * 32 // HEAD_WIDTH),
    )


def _count(tensors: dict[str, Tensor], prefix: str, part: int) -> int:
    return len({name.split(".")[part] for name in tensors if name.startswith(prefix)})

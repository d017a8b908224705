"""open_clip's own models with random weights, to compare with, and the file forms that their weights come in."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import convert_weights_to_lp
from safetensors.torch import save_file
from torch import Tensor, nn

from d4c.models import Clip

Config = dict[str, Any]

# Small where it costs, odd where a mix-up would show: three patches a side, heads and widths differ between towers.
VIT: Config = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 60, "width": 48, "heads": 3, "layers": 2},
}
RESNET: Config = {
    **VIT,
    "vision_cfg": {"image_size": 64, "width": 8, "layers": [2, 1, 1, 2], "head_width": 64},
}
# OpenAI's files name no heads: they are 64 channels wide.
OPENAI_TEXT: Config = {"context_length": 12, "vocab_size": 60, "width": 128, "heads": 2, "layers": 2}
OPENAI_VIT: Config = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 128, "layers": 3},
    "text_cfg": OPENAI_TEXT,
}
OPENAI_RESNET: Config = {**OPENAI_VIT, "vision_cfg": RESNET["vision_cfg"]}


def changed(config: Config, *, vision: Config | None = None, text: Config | None = None, **top: Any) -> Config:
    """A copy of a `model_cfg` with other options."""
    config = copy.deepcopy(config) | top
    config["vision_cfg"] |= vision or {}
    config["text_cfg"] |= text or {}
    return config


def open_clip_model(config: Config, seed: int = 0) -> nn.Module:
    """open_clip's model of a `model_cfg`, every parameter and statistic random, the way `create_model` builds it."""
    config = copy.deepcopy(config)
    model_class = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = model_class(**config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(_draw(name, tensor, generator))
    return model


def _draw(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.randn(like.shape, generator=generator)
    if name in ("logit_scale", "logit_bias"):
        return like + 0.1 * draw
    if name.endswith("running_var"):
        return 0.5 + draw.abs()
    if name.endswith("bn3.weight"):
        return 0.3 + 0.1 * draw  # or sixteen residual sums would saturate the pool's softmax
    if like.ndim == 1:
        return 0.3 * draw + (1.0 if name.endswith(("weight", "gamma")) else 0.0)
    if "embedding" in name:
        return 0.5 * draw
    fan_in = like.shape[0] if name.endswith("proj") or name.endswith("text_projection") else like[0].numel()
    return draw * ((2.0 if like.ndim == 4 else 1.0) / fan_in) ** 0.5


def inputs_for(clip: Clip, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Random pictures, and ids whose highest, the end token, stands anywhere; other ids follow it."""
    generator = torch.Generator().manual_seed(5)
    size, text = clip.config.image.image_size, clip.config.text
    ids = torch.randint(0, text.vocab_size - 1, (batch, text.context_length), generator=generator)
    ends = torch.randint(1, text.context_length, (batch,), generator=generator)
    ids[torch.arange(batch), ends] = text.vocab_size - 1
    return torch.randn(batch, 3, size, size, generator=generator), ids


def row_error(found: Tensor, expected: Tensor) -> float:
    """The largest ‖Δ‖ / ‖z‖ over rows."""
    assert found.shape == expected.shape
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def parity_errors(clip: Clip, model: nn.Module) -> tuple[float, float]:
    """The error of image and of text embeddings against open_clip's forward."""
    pixels, ids = inputs_for(clip)
    with torch.no_grad():
        return (
            row_error(clip.encode_image(pixels), model.encode_image(pixels)),
            row_error(clip.encode_text(ids), model.encode_text(ids)),
        )


def write_folder(folder: Path, config: Config, state: dict[str, Tensor], **settings: Any) -> Path:
    """A folder in open_clip's layout; `settings` are further keys of its configuration file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, **settings}))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    return folder


def openai_state(model: nn.Module) -> dict[str, Tensor]:
    """What OpenAI released of a model: linears and convolutions in half precision, and three numbers beside them.

    `model` gets the same rounded values, in float32.
    """
    convert_weights_to_lp(model, dtype=torch.float16)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.float()
    size = model.visual.image_size
    numbers = (size if isinstance(size, int) else size[0], model.context_length, model.vocab_size)
    return state | dict(
        zip(("input_resolution", "context_length", "vocab_size"), map(torch.tensor, numbers), strict=True)
    )


def save_torchscript(state: dict[str, Tensor], path: Path) -> None:
    """A TorchScript archive whose module tree holds these tensors, parameters and buffers."""
    root = nn.Module()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        if tensor.is_floating_point() and "running" not in leaf:
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is deprecated
        torch.jit.script(root).save(str(path))

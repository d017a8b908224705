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
            tensor.copy_(draw(name, tensor, generator))
    return model


def draw(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """A random value for a parameter, of the size that keeps signals alive."""
    drawn = torch.randn(like.shape, generator=generator)
    if name in ("logit_scale", "logit_bias"):
        return like + 0.1 * drawn
    if name.endswith("running_var"):
        return 0.5 + drawn.abs()
    if name.endswith("bn3.weight"):
        return 0.3 + 0.1 * drawn  # or sixteen residual sums would saturate the pool's softmax
    if like.ndim == 1:
        return 0.3 * drawn + (1.0 if name.endswith(("weight", "gamma")) else 0.0)
    if "embedding" in name:
        return 0.5 * drawn
    fan_in = like.shape[0] if name.endswith("proj") or name.endswith("text_projection") else like[0].numel()
    return drawn * ((2.0 if like.ndim == 4 else 1.0) / fan_in) ** 0.5


def inputs_for(clip: Clip, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Random pictures, and ids whose highest, the end token, stands anywhere; other ids follow it."""
    text = clip.config.text
    return inputs_of_size(clip.config.image.image_size, text.context_length, text.vocab_size, batch)


def inputs_of_size(
    size: int | tuple[int, int], context_length: int, vocab_size: int, batch: int = 4
) -> tuple[Tensor, Tensor]:
    """The same for sizes that are not a `Clip`'s."""
    generator = torch.Generator().manual_seed(5)
    height, width = (size, size) if isinstance(size, int) else size
    ids = torch.randint(0, vocab_size - 1, (batch, context_length), generator=generator)
    ends = torch.randint(1, context_length, (batch,), generator=generator)
    ids[torch.arange(batch), ends] = vocab_size - 1
    return torch.randn(batch, 3, height, width, generator=generator), ids


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


def embeddings(model: nn.Module, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Images and texts as open_clip embeds them."""
    with torch.no_grad():
        return model.encode_image(pixels), model.encode_text(ids)


def transformers_embeddings(state: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Images and texts as Transformers' `CLIPModel` embeds them, given a ViT's state in OpenAI's form."""
    from transformers import CLIPConfig, CLIPModel

    def tower(prefix: str, **settings: int) -> Config:
        fc1 = state[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"]
        layers = {n.removeprefix(f"{prefix}transformer.resblocks.").split(".")[0] for n in state if ".resblocks." in n
                  and n.startswith(f"{prefix}transformer")}  # fmt: skip
        sizes = {"hidden_size": fc1.shape[1], "intermediate_size": fc1.shape[0], "num_hidden_layers": len(layers)}
        return {**sizes, "num_attention_heads": fc1.shape[1] // 64, **settings}

    embed_dim, patch = state["text_projection"].shape[1], state["visual.conv1.weight"].shape[-1]
    config = CLIPConfig(
        text_config=tower("", max_position_embeddings=ids.shape[1], vocab_size=len(state["token_embedding.weight"]),
                          eos_token_id=2),
        vision_config=tower("visual.", image_size=pixels.shape[-1], patch_size=patch),
        projection_dim=embed_dim,
    )  # fmt: skip
    with torch.device("meta"):
        model = CLIPModel(config).eval()
    model.load_state_dict(_transformers_state(state), strict=False, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # only `position_ids`, which are not saved
                setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    assert not any(parameter.is_meta for parameter in model.parameters())
    with torch.no_grad():
        return (
            model.get_image_features(pixels).pooler_output,
            model.get_text_features(ids).pooler_output,
        )


def _transformers_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Written by hand, so that it shares nothing with d4c's own tables."""
    renamed: dict[str, Tensor] = {}
    plain = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    parts = {
        "visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm", ".ln_1": ".layer_norm1", ".ln_2": ".layer_norm2",
        ".attn.out_proj": ".self_attn.out_proj", ".mlp.c_fc": ".mlp.fc1", ".mlp.c_proj": ".mlp.fc2",
        "visual.transformer.resblocks": "vision_model.encoder.layers", "transformer.resblocks":
        "text_model.encoder.layers",
    }  # fmt: skip
    for name, tensor in state.items():
        tensor = tensor.float()
        if name in plain:
            renamed[plain[name]] = tensor
        elif name in ("visual.proj", "text_projection"):
            renamed["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = tensor.T
        elif name not in ("input_resolution", "context_length", "vocab_size"):
            for theirs, ours in parts.items():
                name = name.replace(theirs, ours)
            if ".attn.in_proj_" in name:
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[name.replace(".attn.in_proj_", f".self_attn.{letter}_proj.")] = part
            else:
                renamed[name] = tensor
    return renamed


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

"""The canonical CLIP: two towers, one space, and what turns pictures and texts into their inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from d4c.artifact.architecture import ClipConfig, ResNetConfig
from d4c.errors import ModelFileError
from d4c.inputs import Preprocess, Tokenizer
from d4c.models.resnet import ModifiedResNet
from d4c.models.text import TextTransformer
from d4c.models.vit import VisionTransformer

ImageTower = VisionTransformer | ModifiedResNet


class Clip(nn.Module):
    """A CLIP in its one canonical form, in evaluation mode, its parameters frozen.

    Args:
        image, text: the towers, weights loaded.
        logit_scale: natural logarithm of the factor on cosines, a scalar.
        logit_bias: SigLIP's bias on logits, or None.
        source: where the weights came from, as a person would write it.
        fingerprint: SHA-256 of the float model it came from (`fingerprint_of`).
    """

    logit_scale: Tensor
    logit_bias: Tensor | None

    def __init__(
        self,
        config: ClipConfig,
        image: ImageTower,
        text: TextTransformer,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        *,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        source: str,
        fingerprint: str,
    ) -> None:
        super().__init__()
        self.config, self.source, self.fingerprint = config, source, fingerprint
        self.tokenizer, self.preprocess = tokenizer, preprocess
        self.image, self.text = image, text
        self.register_buffer("logit_scale", logit_scale.detach().float().reshape(()))
        self.register_buffer("logit_bias", None if logit_bias is None else logit_bias.detach().float().reshape(()))
        self.eval().requires_grad_(False)

    def input_sites(self) -> dict[str, str]:
        """The tensor site that each layer reads, both by path in the model."""
        return {
            f"{tower}.{layer}": f"{tower}.{site}"
            for tower, sites in (("image", self.image.input_sites()), ("text", self.text.input_sites()))
            for layer, site in sites.items()
        }

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """[batch, 3, height, width] in normalised space -> [batch, embedding]."""
        features: Tensor = self.image(pixels)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, ids: Tensor, normalize: bool = False) -> Tensor:
        """Token ids [batch, token] -> [batch, embedding]."""
        features: Tensor = self.text(ids)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Logits of every image for every text, [image, text]."""
        logits = self.logit_scale.exp() * self.encode_image(pixels, True) @ self.encode_text(ids, True).T
        return logits if self.logit_bias is None else logits + self.logit_bias


class TorchEncoder:
    """A `Clip` as evaluation's `Encoder`: arrays in, arrays out, in batches."""

    def __init__(self, clip: Clip, batch: int = 64) -> None:
        self.clip, self.batch = clip, batch

    @property
    def preprocess(self) -> Preprocess:
        """The model's."""
        return self.clip.preprocess

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.clip.tokenizer

    @torch.no_grad()
    def encode_image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """[image, 3, size, size] in normalised space -> [image, embedding], not normalised."""
        device = self.clip.logit_scale.device
        parts = torch.from_numpy(pixels).split(self.batch)
        return torch.cat([self.clip.encode_image(p.to(device)).cpu() for p in parts]).numpy()

    @torch.no_grad()
    def encode_text(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[text, token] -> [text, embedding], not normalised."""
        device = self.clip.logit_scale.device
        parts = torch.from_numpy(ids).split(self.batch)
        return torch.cat([self.clip.encode_text(p.to(device)).cpu() for p in parts]).numpy()


class _Undrawn(TorchFunctionMode):
    """Leaves normal draws out: on the meta device they give no values, and make torch load its compiler for seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_ or func is nn.init.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_towers(config: ClipConfig) -> tuple[ImageTower, TextTransformer]:
    """Both towers on the meta device: shapes without values, to be loaded with `assign=True`."""
    with torch.device("meta"), _Undrawn():
        image: ImageTower
        if isinstance(config.image, ResNetConfig):
            image = ModifiedResNet(config.image, config.embed_dim)
        else:
            image = VisionTransformer(config.image, config.embed_dim)
        return image, TextTransformer(config.text, config.embed_dim)


def clip_from_state(
    config: ClipConfig, state: dict[str, Tensor], *, tokenizer: Tokenizer, preprocess: Preprocess, source: str
) -> Clip:
    """Assemble a `Clip` from canonical parameters.

    Args:
        state: float tensors by canonical name, `logit_scale` and perhaps `logit_bias` among them.

    Raises:
        ModelFileError: a parameter is missing, left over, of another shape, or not finite.
    """
    state = {name: tensor.detach().float().contiguous() for name, tensor in state.items()}
    scalars = ["logit_scale", *({"logit_bias"} & state.keys())]
    for name in state.keys() & scalars:
        if state[name].numel() == 1:
            state[name] = state[name].reshape(())  # some files say [1]
    image, text = build_towers(config)
    expected = {f"image.{k}": v.shape for k, v in image.state_dict().items() if not k.endswith("num_batches_tracked")}
    expected |= {f"text.{k}": v.shape for k, v in text.state_dict().items()}
    expected |= dict.fromkeys(scalars, torch.Size())
    _check_state(state, expected, source)
    fingerprint = fingerprint_of(config, state)
    image.load_state_dict({k: state[f"image.{k}"] for k in _names(image)}, strict=False, assign=True)
    text.load_state_dict({k: state[f"text.{k}"] for k in _names(text)}, assign=True)
    for module in image.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = torch.tensor(0)  # the only buffer a checkpoint need not carry
    return Clip(
        config,
        image,
        text,
        state["logit_scale"],
        state.get("logit_bias"),
        tokenizer=tokenizer,
        preprocess=preprocess,
        source=source,
        fingerprint=fingerprint,
    )


def fingerprint_of(config: ClipConfig, state: dict[str, Tensor]) -> str:
    """SHA-256 over the architecture, then names, shapes and float32 bytes in the order of the names."""
    digest = hashlib.sha256(json.dumps(config.to_dict()).encode())
    for name in sorted(state):
        digest.update(f"{name}{[*state[name].shape]}".encode())
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _names(tower: nn.Module) -> list[str]:
    return [name for name in tower.state_dict() if not name.endswith("num_batches_tracked")]


def _check_state(state: dict[str, Tensor], expected: dict[str, torch.Size], source: str) -> None:
    for name, shape in expected.items():
        if name not in state:
            raise ModelFileError(f"{source}: parameter {name} is missing")
        if state[name].shape != shape:
            raise ModelFileError(f"{source}: {name} has shape {[*state[name].shape]}, the model needs {[*shape]}")
    left = sorted(set(state) - set(expected))
    if left:
        raise ModelFileError(
            f"{source}: unexpected parameter {left[0]}" + (f" and {len(left) - 1} more" * (len(left) > 1))
        )
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise ModelFileError(f"{source}: {name} holds values that are not finite")

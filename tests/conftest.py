"""One thread everywhere, and models small enough to compute with in a test."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.numpy import save
from torch import Tensor

from d4c.artifact.architecture import ClipConfig, ResNetConfig, TextConfig, VisionTransformerConfig
from d4c.artifact.open_clip_names import open_clip_model_cfg, renamed_arrays, to_open_clip
from d4c.artifact.transformers_names import transformers_name_table
from d4c.inputs import Preprocess, Tokenizer
from d4c.models import Clip
from d4c.models.clip import build_towers, clip_from_state
from d4c.models.torchvision_schemas import declare_torchvision_schemas

torch.set_num_threads(1)
declare_torchvision_schemas()  # tests import open_clip as an oracle

TEXT = TextConfig(
    context_length=77, vocab_size=49408, width=32, layers=2, heads=2, mlp_width=128, activation="quick_gelu"
)
VIT = ClipConfig(16, VisionTransformerConfig(32, 16, 32, 2, 2, 128, "quick_gelu"), TEXT)
SIGLIP = ClipConfig(
    32,
    VisionTransformerConfig(
        32, 16, 32, 2, 2, 64, "gelu_tanh", 1e-6, pre_norm=False, pooling="attention", class_token=False,
        patch_bias=True, projection=False,
    ),
    TextConfig(77, 49408, 32, 2, 2, 64, "gelu_tanh", 1e-6, causal=False, pooling="last", projection_bias=True),
)  # fmt: skip
RESNET = ClipConfig(16, ResNetConfig(32, 4, (1, 1, 1, 1), 4), TEXT)


def random_state(config: ClipConfig, seed: int = 0) -> dict[str, Tensor]:
    """Seeded canonical parameters, scaled by fan-in so that signals keep their size; BatchNorms are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    image, text = build_towers(config)
    shapes = {f"image.{k}": v.shape for k, v in image.state_dict().items() if not k.endswith("num_batches_tracked")}
    shapes |= {f"text.{k}": v.shape for k, v in text.state_dict().items()}
    state = {"logit_scale": torch.tensor(4.6)}
    if not config.text.causal:
        state["logit_bias"] = torch.tensor(-10.0)
    for name, shape in shapes.items():
        draw = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            state[name] = 0.5 + draw.abs()
        elif ".bn" in name or ".norm" in name:
            state[name] = 0.1 * draw + (1.0 if name.endswith("weight") else 0.0)
        elif len(shape) > 1 and not name.endswith("embedding") and "token_embedding" not in name:
            state[name] = draw * ((2.0 if len(shape) == 4 else 1.0) / draw[0].numel()) ** 0.5
        else:
            state[name] = 0.1 * draw
    return state


def random_clip(config: ClipConfig, seed: int = 0) -> Clip:
    """A canonical model with `random_state`."""
    return clip_from_state(
        config,
        random_state(config, seed),
        tokenizer=Tokenizer.openai(config.text.context_length) if config.text.causal else letter_tokenizer(77),
        preprocess=Preprocess(config.image.image_size),
        source="random",
    )


def letter_tokenizer(context_length: int) -> Tokenizer:
    """SigLIP's kind of tokenizer, whose words are letters: 38 ids, texts end with </s>."""
    words = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz", *"01234567"]
    encoder = tokenizers.Tokenizer(tokenizers.models.Unigram([(word, -1.0) for word in words], 2, byte_fallback=False))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return Tokenizer(encoder, context_length, 1, start=None, end="</s>", cleaning="siglip")


def write_open_clip_folder(folder: Path, config: ClipConfig, state: dict[str, Tensor]) -> Path:
    """A folder that open_clip and `local-dir:` read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip_model_cfg(config)}))
    arrays = to_open_clip(config, {name: tensor.numpy() for name, tensor in state.items()})
    (folder / "open_clip_model.safetensors").write_bytes(save(arrays))
    return folder


def write_siglip_folder(folder: Path, config: ClipConfig, state: dict[str, Tensor]) -> Path:
    """A folder in Transformers' layout, as `local-dir:` reads it."""
    folder.mkdir(parents=True, exist_ok=True)

    def section(tower: VisionTransformerConfig | TextConfig) -> dict[str, int | str]:
        sizes = {"hidden_size": tower.width, "num_hidden_layers": tower.layers, "num_attention_heads": tower.heads}
        return {**sizes, "intermediate_size": tower.mlp_width}

    image, text = config.image, config.text
    assert isinstance(image, VisionTransformerConfig)
    vision = {**section(image), "image_size": image.image_size, "patch_size": image.patch_size}
    words = {**section(text), "vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    settings = {"model_type": "siglip", "vision_config": vision, "text_config": words}
    (folder / "config.json").write_text(json.dumps(settings))
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"height": image.image_size, "width": image.image_size}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size, "resample": 3, **half}))
    letter_tokenizer(text.context_length).save(folder)
    arrays = renamed_arrays(transformers_name_table(config), {name: tensor.numpy() for name, tensor in state.items()})
    (folder / "model.safetensors").write_bytes(save(arrays))
    return folder


@pytest.fixture(scope="session")
def tiny_clip() -> Clip:
    """ViT: image 32, 4 patches and a class token, 2 blocks, width 32; tests must not change it."""
    return random_clip(VIT)


@pytest.fixture(scope="session")
def tiny_resnet() -> Clip:
    """ModifiedResNet: image 32, width 4, one bottleneck a stage; tests must not change it."""
    return random_clip(RESNET)


@pytest.fixture(scope="session")
def tiny_siglip() -> Clip:
    """SigLIP: image 32, 4 patches, attention pool, 2 blocks, width 32; tests must not change it."""
    return random_clip(SIGLIP)


@pytest.fixture(scope="session")
def pixels() -> Tensor:
    """Eight smooth random pictures [8, 3, 32, 32] in normalised space."""
    coarse = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear", align_corners=False)


@pytest.fixture(scope="session")
def ids(tiny_clip: Clip) -> Tensor:
    """Token ids [6, 77] of sentences of several lengths."""
    texts = ["a photo of a cat.", "dog", "an old red car in the rain", "a bowl of soup", "sky", "a photo of a tree."]
    return torch.from_numpy(tiny_clip.tokenizer(texts))


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_clip` as an open_clip folder; tests must not change it."""
    return write_open_clip_folder(tmp_path_factory.mktemp("models") / "vit", VIT, random_state(VIT))


@pytest.fixture(scope="session")
def resnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_resnet` as an open_clip folder; tests must not change it."""
    return write_open_clip_folder(tmp_path_factory.mktemp("models") / "resnet", RESNET, random_state(RESNET))


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_siglip`, but with texts of 16 letters, in Transformers' layout; tests must not change it."""
    config = dataclasses.replace(SIGLIP, text=dataclasses.replace(SIGLIP.text, context_length=16, vocab_size=40))
    return write_siglip_folder(tmp_path_factory.mktemp("models") / "siglip", config, random_state(config))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

"""The shape of a CLIP model as plain data: what `config.json` holds and what every builder reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
TextPooling = Literal["end_of_text", "last", "first"]


# Of a ViT: what artifacts and fingerprints made before these options existed do not name.
LATER_OPTIONS = {"class_token": True, "patch_bias": False, "projection": True}


@dataclass(frozen=True, slots=True)
class VisionTransformerConfig:
    """A ViT image tower: patches, pre-norm blocks, one pooled token, perhaps a projection.

    Args:
        image_size: side of the square input, pixels; what is left of it beside whole patches is not seen.
        mlp_width: hidden features of each block's MLP, and of the attention pool's.
        pre_norm: whether a LayerNorm precedes the first block (OpenAI's `ln_pre`).
        pooling: "class" takes token 0, "mean" averages the patch tokens, "attention" lets a learned probe look at all
            of them (SigLIP).
        norm_after_pooling: whether the last LayerNorm sees the pooled token instead of all tokens.
        layer_scale: whether each branch is multiplied by a learned vector before the residual sum.
        class_token: whether a learned token stands before the patches.
        patch_bias: whether the patch embedding has a bias.
        projection: whether a linear follows the pooled token; without one the embedding is as wide as the tower.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation
    norm_eps: float = 1e-5
    pre_norm: bool = True
    pooling: Literal["class", "mean", "attention"] = "class"
    norm_after_pooling: bool = False
    layer_scale: bool = False
    class_token: bool = True
    patch_bias: bool = False
    projection: bool = True
    kind: Literal["vit"] = "vit"

    def __post_init__(self) -> None:
        if self.image_size < self.patch_size or self.width % self.heads:
            raise ValueError(
                f"need an image of at least one patch and width divisible by heads; got "
                f"{self.image_size}/{self.patch_size}, {self.width}/{self.heads}"
            )
        if self.pooling == "class" and not self.class_token:
            raise ValueError("need a class token to pool by it")

    @property
    def num_tokens(self) -> int:
        """Patches, and the class token where there is one."""
        return (self.image_size // self.patch_size) ** 2 + self.class_token


@dataclass(frozen=True, slots=True)
class ResNetConfig:
    """A ModifiedResNet image tower: three-convolution stem, four stages of bottlenecks, attention pool.

    Args:
        image_size: side of the square input, pixels; a multiple of 32.
        width: channels of the first stage's bottlenecks; the last stage gives 32 x width.
        layers: bottlenecks in each of the four stages.
        heads: heads of the attention pool.
        batch_norm: False once every BatchNorm is folded into its convolution, which then has a bias.
    """

    image_size: int
    width: int
    layers: tuple[int, int, int, int]
    heads: int
    batch_norm: bool = True
    kind: Literal["resnet"] = "resnet"

    def __post_init__(self) -> None:
        if self.image_size % 32 or (self.width * 32) % self.heads or len(self.layers) != 4:
            raise ValueError(f"need image_size divisible by 32, 32 x width by heads, four stages; got {self}")


@dataclass(frozen=True, slots=True)
class TextConfig:
    """A text transformer over token ids.

    Args:
        causal: whether a token sees only itself and earlier ones (then padding after the end token is dead).
        pooling: which token becomes the embedding; "end_of_text" is the first highest id, as OpenAI has it.
        projection_bias: whether the final projection has a bias.
    """

    context_length: int
    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation
    norm_eps: float = 1e-5
    causal: bool = True
    pooling: TextPooling = "end_of_text"
    layer_scale: bool = False
    projection_bias: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"need width divisible by heads; got {self.width}/{self.heads}")


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """Both towers and the width of the space they share."""

    embed_dim: int
    image: VisionTransformerConfig | ResNetConfig
    text: TextConfig

    def __post_init__(self) -> None:
        image = self.image
        if not isinstance(image, ResNetConfig) and not image.projection and image.width != self.embed_dim:
            raise ValueError(f"need a projection from {image.width} to {self.embed_dim} channels")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `config.json`.

        Options that came after the first artifacts are left out at their default: fingerprints hash this.
        """
        data = asdict(self)
        for option, default in LATER_OPTIONS.items():
            if data["image"].get(option) == default:
                del data["image"][option]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ClipConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError, KeyError, TypeError: the data does not describe a model this version knows.
        """
        image = dict(data["image"])
        kind = image.get("kind")
        if kind == "vit":
            image_config: VisionTransformerConfig | ResNetConfig = VisionTransformerConfig(**image)
        elif kind == "resnet":
            image_config = ResNetConfig(**{**image, "layers": tuple(image["layers"])})
        else:
            raise ValueError(f"unknown image tower {kind!r}; known: 'vit', 'resnet'")
        return cls(embed_dim=data["embed_dim"], image=image_config, text=TextConfig(**data["text"]))

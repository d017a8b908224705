"""The ViT image tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d4c.artifact.architecture import VisionTransformerConfig
from d4c.models.attention import Block
from d4c.models.sites import TensorSite


class VisionTransformer(nn.Module):
    """Image -> embedding: `embed`, then every block of `blocks`, then `head`.

    Source: the image tower of CLIP (arXiv:2103.00020) as open_clip parametrises it.
    """

    def __init__(self, config: VisionTransformerConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, tokens = config.width, (config.image_size // config.patch_size) ** 2 + 1
        self.pixels = TensorSite()
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width).normal_(std=width**-0.5))
        self.position_embedding = nn.Parameter(torch.empty(tokens, width).normal_(std=width**-0.5))
        self.norm_pre = nn.LayerNorm(width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                config.mlp_width,
                config.activation,
                norm_eps=config.norm_eps,
                layer_scale=config.layer_scale,
            )
            for _ in range(config.layers)
        )
        self.norm_post = nn.LayerNorm(width, eps=config.norm_eps)
        self.pooled = TensorSite()
        self.projection = nn.Linear(width, embed_dim, bias=False)

    def named_blocks(self) -> list[tuple[str, Block]]:
        """The residual blocks in order, each with its path in the tower."""
        return [(f"blocks.{i}", block) for i, block in enumerate(self.blocks) if isinstance(block, Block)]

    def input_sites(self) -> dict[str, str]:
        """The tensor site that each layer reads, both by path in the tower."""
        sites = {"patch_embedding": "pixels", "projection": "pooled"}
        for name, block in self.named_blocks():
            sites |= {f"{name}.{layer}": f"{name}.{site}" for layer, site in block.reads.items()}
        return sites

    def embed(self, pixels: Tensor) -> Tensor:
        """[batch, 3, height, width] -> [batch, token, channel]; token 0 is the class token."""
        x = self.patch_embedding(self.pixels(pixels))  # [batch, channel, height, width]
        x = x.flatten(2).transpose(1, 2)  # [batch, token, channel]
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        return self.norm_pre(x + self.position_embedding)

    def head(self, x: Tensor, _: Tensor) -> Tensor:
        """[batch, token, channel] -> [batch, embedding]; the tower's own input is not needed again."""
        if not self.config.norm_after_pooling:
            x = self.norm_post(x)
        x = x[:, 0] if self.config.pooling == "class" else x[:, 1:].mean(dim=1)  # [batch, channel]
        if self.config.norm_after_pooling:
            x = self.norm_post(x)
        return self.projection(self.pooled(x))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(x, pixels)

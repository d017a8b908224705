"""The ViT image tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d4c.artifact.architecture import VisionTransformerConfig
from d4c.models.attention import Block, ProbePool
from d4c.models.sites import TensorSite


class VisionTransformer(nn.Module):
    """Image -> embedding: `embed`, then every block of `blocks`, then `head`.

    Source: the image tower of CLIP (arXiv:2103.00020) as open_clip parametrises it, and SigLIP's (arXiv:2303.15343).
    """

    def __init__(self, config: VisionTransformerConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.pixels = TensorSite()
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=config.patch_bias)
        if config.class_token:
            self.class_embedding = nn.Parameter(torch.empty(width).normal_(std=width**-0.5))
        self.position_embedding = nn.Parameter(torch.empty(config.num_tokens, width).normal_(std=width**-0.5))
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
        if config.pooling == "attention":
            self.pool = ProbePool(width, config.heads, config.mlp_width, config.activation, norm_eps=config.norm_eps)
        self.pooled = TensorSite() if config.projection else nn.Identity()
        self.projection = nn.Linear(width, embed_dim, bias=False) if config.projection else nn.Identity()

    def named_blocks(self) -> list[tuple[str, Block]]:
        """The residual blocks in order, each with its path in the tower."""
        return [(f"blocks.{i}", block) for i, block in enumerate(self.blocks) if isinstance(block, Block)]

    def input_sites(self) -> dict[str, str]:
        """The tensor site that each layer reads, both by path in the tower."""
        sites = {"patch_embedding": "pixels"}
        parts: list[tuple[str, Block | ProbePool]] = [*self.named_blocks()]
        if self.config.pooling == "attention":
            parts.append(("pool", self.pool))
        for name, part in parts:
            sites |= {f"{name}.{layer}": f"{name}.{site}" for layer, site in part.reads.items()}
        return sites | ({"projection": "pooled"} if self.config.projection else {})

    def embed(self, pixels: Tensor) -> Tensor:
        """[batch, 3, height, width] -> [batch, token, channel]; token 0 is the class token where there is one."""
        x = self.patch_embedding(self.pixels(pixels))  # [batch, channel, height, width]
        x = x.flatten(2).transpose(1, 2)  # [batch, token, channel]
        if self.config.class_token:
            x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        return self.norm_pre(x + self.position_embedding)

    def head(self, x: Tensor, _: Tensor) -> Tensor:
        """[batch, token, channel] -> [batch, embedding]; the tower's own input is not needed again."""
        if not self.config.norm_after_pooling:
            x = self.norm_post(x)
        x = self.pool_tokens(x)
        if self.config.norm_after_pooling:
            x = self.norm_post(x)
        return self.projection(self.pooled(x))

    def pool_tokens(self, x: Tensor) -> Tensor:
        """[batch, token, channel] -> [batch, channel]."""
        if self.config.pooling == "attention":
            return self.pool(x)
        return x[:, 0] if self.config.pooling == "class" else x[:, int(self.config.class_token) :].mean(dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(x, pixels)

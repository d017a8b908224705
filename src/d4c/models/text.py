"""The text tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d4c.artifact.architecture import TextConfig
from d4c.models.attention import Block
from d4c.models.sites import TensorSite


class TextTransformer(nn.Module):
    """Token ids -> embedding: `embed`, then every block of `blocks` under `mask`, then `head`.

    Source: the text tower of CLIP (arXiv:2103.00020) as open_clip parametrises it.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, config.width).normal_(std=0.01))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_width,
                config.activation,
                norm_eps=config.norm_eps,
                layer_scale=config.layer_scale,
            )
            for _ in range(config.layers)
        )
        self.norm_final = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.pooled = TensorSite()
        self.projection = nn.Linear(config.width, embed_dim, bias=config.projection_bias)

    def live_length(self, ids: Tensor) -> Tensor:
        """How many tokens of each row can reach the embedding, [batch]; all of them if attention is not causal."""
        if self.config.causal and self.config.pooling == "end_of_text":
            return ids.argmax(dim=-1) + 1
        return torch.full(ids.shape[:1], ids.shape[1], device=ids.device)

    def trim(self, ids: Tensor) -> Tensor:
        """Drop the columns that no row's embedding depends on; exact."""
        return ids[:, : int(self.live_length(ids).max())]

    def mask(self, length: int, device: torch.device) -> Tensor | None:
        """What is added to attention logits, [query, key]: -inf above the diagonal, or None if not causal."""
        if not self.config.causal:
            return None
        return torch.full((length, length), -torch.inf, device=device).triu(1)

    def named_blocks(self) -> list[tuple[str, Block]]:
        """The residual blocks in order, each with its path in the tower."""
        return [(f"blocks.{i}", block) for i, block in enumerate(self.blocks) if isinstance(block, Block)]

    def input_sites(self) -> dict[str, str]:
        """The tensor site that each layer reads, both by path in the tower."""
        sites = {"projection": "pooled"}
        for name, block in self.named_blocks():
            sites |= {f"{name}.{layer}": f"{name}.{site}" for layer, site in block.reads.items()}
        return sites

    def embed(self, ids: Tensor) -> Tensor:
        """[batch, token] -> [batch, token, channel]."""
        return self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]

    def head(self, x: Tensor, ids: Tensor) -> Tensor:
        """[batch, token, channel] and the ids that made it -> [batch, embedding]."""
        if self.config.pooling == "end_of_text":
            x = x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)]  # [batch, channel]
        else:
            x = x[:, -1] if self.config.pooling == "last" else x[:, 0]  # [batch, channel]
        return self.projection(self.pooled(self.norm_final(x)))

    def forward(self, ids: Tensor) -> Tensor:
        ids = self.trim(ids)
        mask = self.mask(ids.shape[1], ids.device)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x, ids)

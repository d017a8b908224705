"""The ModifiedResNet image tower."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4c.artifact.architecture import ResNetConfig
from d4c.models.attention import AttentionProducts
from d4c.models.sites import TensorSite


def _norm(batch_norm: bool, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


def _average(stride: int) -> nn.Module:
    return nn.AvgPool2d(stride) if stride > 1 else nn.Identity()


INCOMING = "<"  # in a part's `reads`: the tensor that comes in, which the part before it put out


class Stem(nn.Module):
    """Three 3x3 convolutions, the first of stride 2, and an average pool: height and width become a quarter."""

    reads: ClassVar[dict[str, str]] = {"conv1": INCOMING, "conv2": "conv1_out", "conv3": "conv2_out"}
    output = "pool_out"

    def __init__(self, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=not batch_norm)
        self.bn1 = _norm(batch_norm, width // 2)
        self.conv1_out = TensorSite()
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=not batch_norm)
        self.bn2 = _norm(batch_norm, width // 2)
        self.conv2_out = TensorSite()
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=not batch_norm)
        self.bn3 = _norm(batch_norm, width)
        self.conv3_out = TensorSite()
        self.pool: nn.Module = nn.AvgPool2d(2)
        self.pool_out = TensorSite()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1_out(F.relu(self.bn1(self.conv1(x))))
        x = self.conv2_out(F.relu(self.bn2(self.conv2(x))))
        x = self.conv3_out(F.relu(self.bn3(self.conv3(x))))
        return self.pool_out(self.pool(x))


class Shortcut(nn.Module):
    """Average pool, 1x1 convolution and BatchNorm on the residual path, where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.pool: nn.Module = _average(stride)
        self.pool_out = TensorSite() if stride > 1 else nn.Identity()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=not batch_norm)
        self.bn = _norm(batch_norm, outputs)
        self.conv_out = TensorSite()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.bn(self.conv(self.pool_out(self.pool(x)))))


class RectifiedSum(nn.Module):
    """relu(x + y): a module, so that a sum of codes can take its place."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(x + y)


class Bottleneck(nn.Module):
    """relu(conv3(pool(relu(conv2(relu(conv1(x)))))) + shortcut(x)); strides are average pools."""

    expansion = 4
    output = "sum_out"

    def __init__(self, inputs: int, planes: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=not batch_norm)
        self.bn1 = _norm(batch_norm, planes)
        self.conv1_out = TensorSite()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=not batch_norm)
        self.bn2 = _norm(batch_norm, planes)
        self.conv2_out = TensorSite()
        self.pool: nn.Module = _average(stride)
        self.pool_out = TensorSite() if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=not batch_norm)
        self.bn3 = _norm(batch_norm, outputs)
        self.conv3_out = TensorSite()
        self.shortcut = (
            Shortcut(inputs, outputs, stride, batch_norm) if stride > 1 or inputs != outputs else nn.Identity()
        )
        self.sum: nn.Module = RectifiedSum()
        self.sum_out = TensorSite()

    @property
    def reads(self) -> dict[str, str]:
        """The tensor site in front of each convolution."""
        pooled = self.stride > 1
        reads = {"conv1": INCOMING, "conv2": "conv1_out", "conv3": "pool_out" if pooled else "conv2_out"}
        if isinstance(self.shortcut, Shortcut):
            reads["shortcut.conv"] = "shortcut.pool_out" if pooled else INCOMING
        return reads

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1_out(F.relu(self.bn1(self.conv1(x))))
        y = self.conv2_out(F.relu(self.bn2(self.conv2(y))))
        y = self.conv3_out(self.bn3(self.conv3(self.pool_out(self.pool(y)))))
        return self.sum_out(self.sum(y, self.shortcut(x)))


class AttentionPool(AttentionProducts):
    """One attention step whose only query is the mean token; keys and values are all tokens."""

    reads: ClassVar[dict[str, str]] = {"q": "q_input", "k": "input", "v": "input", "out": "context"}

    def __init__(self, width: int, heads: int, tokens: int, embed_dim: int) -> None:
        super().__init__(heads)
        self.position_embedding = nn.Parameter(torch.empty(tokens, width).normal_(std=width**-0.5))
        self.input = TensorSite()
        self.q_input = TensorSite()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.context = TensorSite()
        self.out = nn.Linear(width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # [batch, token, channel]
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.position_embedding
        q = self.q(self.q_input(x[:, :1]))  # [batch, 1, channel]
        x = self.input(x)
        return self.out(self.context(self.products(q, self.k(x), self.v(x))[:, 0]))  # [batch, embedding]


class ModifiedResNet(nn.Module):
    """Image -> embedding: `embed` (the stem), then every bottleneck, then `head` (the attention pool).

    Source: the ResNet image tower of CLIP (arXiv:2103.00020, section 2.4) as open_clip parametrises it.
    """

    def __init__(self, config: ResNetConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.pixels = TensorSite()
        self.stem = Stem(config.width, config.batch_norm)
        inputs = config.width
        for stage, depth in enumerate(config.layers):
            planes = config.width * 2**stage
            layer = nn.Sequential()
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(Bottleneck(inputs, planes, stride, config.batch_norm))
                inputs = planes * Bottleneck.expansion
            self.add_module(f"layer{stage + 1}", layer)
        self.pool = AttentionPool(inputs, config.heads, (config.image_size // 32) ** 2 + 1, embed_dim)

    def named_blocks(self) -> list[tuple[str, Bottleneck]]:
        """The bottlenecks in order, each with its path in the tower."""
        return [(name, module) for name, module in self.named_modules() if isinstance(module, Bottleneck)]

    def input_sites(self) -> dict[str, str]:
        """The tensor site that each layer reads, both by path in the tower."""
        sites, incoming = {}, "pixels"
        parts: list[tuple[str, Stem | Bottleneck]] = [("stem", self.stem), *self.named_blocks()]
        for name, part in parts:
            for layer, site in part.reads.items():
                sites[f"{name}.{layer}"] = incoming if site == INCOMING else f"{name}.{site}"
            incoming = f"{name}.{part.output}"
        return sites | {f"pool.{layer}": f"pool.{site}" for layer, site in self.pool.reads.items()}

    def embed(self, pixels: Tensor) -> Tensor:
        """[batch, 3, height, width] -> [batch, channel, height / 4, width / 4]."""
        return self.stem(self.pixels(pixels))

    def head(self, x: Tensor, _: Tensor) -> Tensor:
        """[batch, channel, height, width] -> [batch, embedding]; the tower's own input is not needed again."""
        return self.pool(x)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        for _, block in self.named_blocks():
            x = block(x)
        return self.head(x, pixels)

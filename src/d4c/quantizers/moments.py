"""What closed-form reconstruction needs to know of a layer's inputs in the float and in the quantized stream.

For token n: x_n what the float layer reads, x̂_n what the integer layer reads (behind its quantizer), δ_n = x_n - x̂_n.

    H = Σ w (x̂ - x̂̄)(x̂ - x̂̄)ᵀ      D = Σ w (δ - δ̄)(x̂ - x̂̄)ᵀ      ℓ = Σ w (W (δ - δ̄))²

With E = Ŵ - W the layer's error is that of W δ - E x̂, so nothing here cancels: every term is as small as the error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums over tokens, each set of them about its own mean.

    Args:
        count: Σ w.
        mean: of x̂, [in]; drift: mean of δ, [in]; both 0 where the layer has no bias to absorb a mean.
        gram: H, [in, in]; cross: D, [in, in].
        lost: ℓ, [out]: what the layer loses if its weight stays as it is.
    """

    count: Tensor
    mean: Tensor
    drift: Tensor
    gram: Tensor
    cross: Tensor
    lost: Tensor

    @classmethod
    def of(cls, x: Tensor, quantized: Tensor, weight: Tensor, token_weight: Tensor | None, *, centred: bool) -> Moments:
        """Sums over a few thousand tokens.

        Args:
            x: float stream; quantized: quantized stream behind the layer's own quantizer; both [token, in].
            weight: of the float layer, [out, in].
            token_weight: >= 0, [token]; None counts every token once.
            centred: whether to subtract means, which a bias takes up.
        """
        w = torch.ones_like(x[:, 0]) if token_weight is None else token_weight
        delta = x - quantized  # [token, in]
        count = w.sum()
        share = w / count.clamp(min=torch.finfo(w.dtype).tiny)  # [token]
        zero = torch.zeros_like(x[0])
        mean, drift = (share @ quantized, share @ delta) if centred else (zero, zero)
        centre, delta = quantized - mean, delta - drift
        weighted = centre * w[:, None]  # [token, in]
        lost = (delta @ weight.T).square_().T @ w  # [out]
        return cls(count, mean, drift, weighted.T @ centre, delta.T @ weighted, lost)

    def tensors(self) -> list[Tensor]:
        """The fields in order, as the constructor takes them."""
        return [self.count, self.mean, self.drift, self.gram, self.cross, self.lost]

    def merge(self, other: Moments, weight: Tensor) -> Moments:
        """Sums over both sets of tokens, about their common mean (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        both = self.count * other.count / count.clamp(min=torch.finfo(count.dtype).tiny)
        share = other.count / count.clamp(min=torch.finfo(count.dtype).tiny)
        mean_gap, drift_gap = other.mean - self.mean, other.drift - self.drift
        return Moments(
            count,
            self.mean + share * mean_gap,
            self.drift + share * drift_gap,
            (self.gram + other.gram).addr_(mean_gap, mean_gap, alpha=float(both)),
            (self.cross + other.cross).addr_(drift_gap, mean_gap, alpha=float(both)),
            self.lost + other.lost + both * (weight @ drift_gap).square(),
        )

    def bias_shift(self, weight: Tensor, change: Tensor) -> Tensor:
        """What the bias must gain to cancel the mean error, W δ̄ - E x̂̄, [out]; this is bias correction.

        Args:
            weight: W; change: E = Ŵ - W; both [out, in].
        """
        return weight @ self.drift - change @ self.mean

    def error(self, weight: Tensor, change: Tensor, bias_shift: Tensor, crossed: Tensor | None = None) -> Tensor:
        """Mean over tokens of each output's squared error, [out]; exact.

        Args:
            weight, change: as for `bias_shift`; bias_shift: what the bias gained, [out].
            crossed: W D, [out, in], where it is known.
        """
        crossed = weight @ self.cross if crossed is None else crossed
        total = self.lost - 2 * (crossed * change).sum(dim=1) + ((change @ self.gram) * change).sum(dim=1)
        offset = self.bias_shift(weight, change) - bias_shift
        return total.clamp(min=0) / self.count + offset.square()


def merge_all(parts: Iterable[Moments], weight: Tensor) -> Moments:
    """Merge neighbours in a binary tree, as they come, so that few are alive at once.

    The order of additions depends on the number of parts alone.
    """
    waiting: list[tuple[int, Moments]] = []  # height of each subtree, falling
    for part in parts:
        height = 0
        while waiting and waiting[-1][0] == height:
            part, height = waiting.pop()[1].merge(part, weight), height + 1
        waiting.append((height, part))
    merged = waiting.pop()[1]
    while waiting:
        merged = waiting.pop()[1].merge(merged, weight)
    return merged

"""Walking a tower part by part, so that what lies between parts is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from d4c.models.attention import Block
from d4c.models.clip import Clip
from d4c.models.text import TextTransformer
from d4c.models.vit import VisionTransformer

TowerName = Literal["image", "text"]
EMBED = ("pixels", "patch_embedding", "stem.", "token_embedding")
HEAD = ("pooled", "projection", "pool.")


@dataclass(frozen=True)
class Part:
    """The embedding, one residual block or half of one, or the head of a tower.

    Args:
        name: its path, as `image.blocks.3` or `image.blocks.3.mlp`; `image.embed` and `image.head` for the ends.
        prefixes: what the names of its sites begin with.
        run: (what the part before put out, the tower's own input) -> what this part puts out.
    """

    name: str
    prefixes: tuple[str, ...]
    run: Callable[[Tensor, Tensor], Tensor]

    def owns(self, site: str) -> bool:
        """Whether a site lies in this part."""
        return site.startswith(self.prefixes)


def tower_parts(clip: Clip, tower: TowerName, *, halves: bool = False) -> list[Part]:
    """The parts of a tower in order; running them one after the other is the tower.

    Text is expected trimmed (`TextTransformer.trim`).

    Args:
        halves: whether a transformer's block is two parts, attention and MLP.
    """
    model = clip.image if tower == "image" else clip.text
    parts = [Part(f"{tower}.embed", tuple(f"{tower}.{p}" for p in EMBED), lambda _, inputs: model.embed(inputs))]
    for name, block in model.named_blocks():
        attends = partial(_run_masked, text=model) if isinstance(model, TextTransformer) else _run
        runs = {name: partial(attends, block)}
        if halves and isinstance(block, Block):
            runs = {f"{name}.attention": partial(attends, block.attend), f"{name}.mlp": partial(_run, block.transform)}
        parts += [Part(f"{tower}.{path}", (f"{tower}.{path}.",), run) for path, run in runs.items()]
    return [*parts, Part(f"{tower}.head", tuple(f"{tower}.{p}" for p in HEAD), model.head)]


def run_in_batches(part: Part, stream: Tensor, inputs: Tensor, batch: int = 32) -> Tensor:
    """Run one part on many samples, without gradients; the first part ignores the stream."""
    with torch.no_grad():
        pairs = zip(stream.split(batch), inputs.split(batch), strict=True)
        return torch.cat([part.run(x, i) for x, i in pairs])


@contextmanager
def captured_inputs(
    model: nn.Module, names: list[str], *, with_graph: bool = False
) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what goes into the named modules, call by call, for the length of a `with`.

    Args:
        with_graph: keep what gradients need.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name].append(args[0] if with_graph else args[0].detach())

        return keep

    modules = [model.get_submodule(name) for name in names]  # before any hook: a name may be wrong
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in zip(names, modules, strict=True)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class _Reached(Exception):
    """A forward pass came to the module whose input was wanted."""


def input_to(model: nn.Module, name: str, part: Part, stream: Tensor, inputs: Tensor) -> Tensor:
    """What goes into a module when its part runs, without gradients; what lies behind the module is not computed.

    Args:
        name: path of the module in `model`; stream, inputs: as for `Part.run`.
    """
    found: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(stop)
    try:
        with torch.no_grad(), suppress(_Reached):
            part.run(stream, inputs)
    finally:
        handle.remove()
    return found[0]


def pooled_token(clip: Clip, tower: TowerName, ids: Tensor) -> Tensor | None:
    """The one token of each sample that becomes the embedding, [sample]; None where many do.

    Args:
        ids: texts as the tower takes them, or pixels, [sample, ..].
    """
    if tower == "text":
        pooling = clip.text.config.pooling
        if pooling == "end_of_text":
            return ids.argmax(dim=-1)
        return torch.full(ids.shape[:1], ids.shape[1] - 1 if pooling == "last" else 0, device=ids.device)
    if isinstance(clip.image, VisionTransformer) and clip.image.config.pooling == "class":
        return torch.zeros(ids.shape[:1], dtype=torch.long, device=ids.device)
    return None


def padded_or_live(clip: Clip, ids: Tensor, *, padding: bool) -> tuple[Tensor, Tensor | None]:
    """Texts as the text tower's parts take them, and which of their tokens count.

    Args:
        ids: [text, token]; padding: whether every token counts, padding after the end of text too.

    Returns:
        ids, trimmed where padding does not count, and [text, token] of bool, or None where all count.
    """
    if padding:
        return ids, None
    ids = clip.text.trim(ids)
    return ids, live_tokens(clip, ids)


def live_tokens(clip: Clip, ids: Tensor) -> Tensor:
    """Which tokens of trimmed ids can reach the embedding, [text, token] of bool."""
    return torch.arange(ids.shape[1], device=ids.device) < clip.text.live_length(ids)[:, None]


def keep_live(x: Tensor, live: Tensor | None) -> Tensor:
    """Drop the dead tokens of what a site saw.

    Args:
        x: [sample, token, channel], [sample, head, query, key] or [sample, channel].
        live: [sample, token], or None where all are alive.

    Returns:
        [live token, channel], [live token, head, key] or `x` itself.
    """
    if live is None or x.ndim == 2:
        return x
    return (x.transpose(1, 2) if x.ndim == 4 else x)[live]


def _run(block: Callable[..., Tensor], x: Tensor, _: Tensor) -> Tensor:
    return block(x)


def _run_masked(block: Callable[..., Tensor], x: Tensor, ids: Tensor, *, text: TextTransformer) -> Tensor:
    return block(x, text.mask(ids.shape[1], ids.device))

"""Many small kernels as one launch: without it a GPU waits for the processor between two columns of a weight."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Form = tuple[torch.Size, torch.dtype, torch.device]
NUM_GRAPHS = 64  # kept; a model has some ten shapes of weights, and a graph's tensors take a few megabytes


def launch(function: Callable[..., None], changed: Sequence[Tensor], read: Sequence[Tensor]) -> None:
    """`function(*changed, *read)`; on a GPU its kernels are recorded once for tensors of these shapes, then replayed.

    Args:
        function: a module's own, which works in place, and whose kernels depend on no tensor's values.
        changed: what it is called for; read: whatever it may do to these is lost on a GPU.
    """
    if not changed[0].is_cuda:
        function(*changed, *read)
        return
    tensors = [*changed, *read]
    graph, own = _record(function, tuple((t.shape, t.dtype, t.device) for t in tensors))
    for held, given in zip(own, tensors, strict=True):
        held.copy_(given)
    graph.replay()
    for held, given in zip(own, changed, strict=False):
        given.copy_(held)


@functools.lru_cache(maxsize=NUM_GRAPHS)
def _record(function: Callable[..., None], forms: tuple[Form, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A graph of the function's kernels, and the tensors that they read and write."""
    own = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in forms]
    function(*own)  # so that every kernel is loaded
    graph = torch.cuda.CUDAGraph()
    # On the tensors' card, whichever is the current one; other threads, such as NCCL's, may go on meanwhile.
    with torch.cuda.device(own[0].device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function(*own)
    return graph, own

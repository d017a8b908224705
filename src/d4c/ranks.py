"""Several processes at one job: who does what, and how everyone gets everything.

Results never depend on how many there are. Work is cut into pieces by the job alone, each piece is computed whole by
one process, and what is added up is added in an order that the pieces' numbers determine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from d4c.errors import RunError

Value = TypeVar("Value")
# One process may work for hours while the others wait; if it dies, its closed connections or torchrun end the job.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a job.

    Args:
        rank: from 0; size: how many there are. The first one reports, keeps pieces and writes.
        device: where tensors are exchanged; group: torch's, of all of them.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def share(self, count: int) -> list[int]:
        """The numbers, of `count`, that are this process's."""
        return list(range(self.rank, count, self.size))

    def agree(self, make: Callable[[], Value]) -> Value:
        """What the first process makes of it, for everyone; any value that can be pickled."""
        if self.size == 1:
            return make()
        held: list[Value | None] = [make() if self.first else None]
        _together(lambda: dist.broadcast_object_list(held, src=0, group=self.group))
        found = held[0]
        return found  # type: ignore[return-value]

    def collect_values(self, mine: Mapping[int, Value], count: int) -> list[Value]:
        """Small values of all numbers, in order; `mine` has those of `share`."""
        if self.size == 1:
            return [mine[i] for i in range(count)]
        held: list[Mapping[int, Value] | None] = [None] * self.size
        _together(lambda: dist.all_gather_object(held, dict(mine), group=self.group))
        merged = {i: value for part in held if part is not None for i, value in part.items()}
        return [merged[i] for i in range(count)]

    def collect(self, mine: Mapping[int, Sequence[Tensor]], count: int) -> list[list[Tensor]]:
        """Tensors of all numbers, in order, each sent by the process whose `share` its number is in."""
        if self.size == 1:
            return [list(mine[i]) for i in range(count)]
        forms = self.collect_values(
            {i: [(t.shape, t.dtype, t.device.type) for t in ts] for i, ts in mine.items()}, count
        )
        return [self._send(mine.get(i), form, i % self.size) for i, form in enumerate(forms)]

    def _send(
        self, tensors: Sequence[Tensor] | None, form: Sequence[tuple[torch.Size, torch.dtype, str]], owner: int
    ) -> list[Tensor]:
        received = []
        for i, (shape, dtype, kind) in enumerate(form):
            if tensors is None:
                held = torch.empty(shape, dtype=dtype, device=self.device)
            else:
                held = tensors[i].to(self.device).contiguous()
            _together(lambda held=held: dist.broadcast(held, src=owner, group=self.group))  # type: ignore[misc]
            received.append(held.cpu() if kind == "cpu" else held)
        return received


ALONE = Ranks()


def join(device: str) -> Ranks:
    """The process's place among those that `torchrun` started; alone without it.

    Args:
        device: "cpu", or the "cuda:N" that this process computes on, which decides how tensors travel.

    Raises:
        RunError: the others do not answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return ALONE
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    _together(lambda: dist.init_process_group("nccl" if cuda else "gloo"))
    group = dist.new_group(timeout=PATIENCE)  # whereas meeting each other must not take longer than usual
    return Ranks(dist.get_rank(), dist.get_world_size(), device if cuda else "cpu", group)


def _together(exchange: Callable[[], object]) -> None:
    try:
        exchange()
    except (RuntimeError, ValueError) as error:  # what torch raises when a peer is gone or cannot be reached
        if "Duplicate GPU" in str(error):
            raise RunError("two processes share a GPU; start one for each GPU, or take --device cpu") from error
        raise RunError("another process of this job ended; the same command continues it") from error

"""Running stages in order, remembering their results and what each cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from torch import Tensor

from d4c.artifact import Work
from d4c.artifact.work import appearing_whole
from d4c.memory import return_freed_memory
from d4c.ranks import ALONE, Ranks

Result = TypeVar("Result")


class Stages:
    """Runs stages in order and records what each cost; their results are found again by what determines them.

    Args:
        work: in the job's folder for results of unfinished stages.
        environment: what determines every stage.
        ranks: processes that run all stages side by side; the first keeps results.
    """

    def __init__(self, work: Work, environment: Sequence[Any], ranks: Ranks = ALONE) -> None:
        self.work, self.key, self.ranks = work, hash_of(*environment), ranks
        self.record: dict[str, dict[str, Any]] = {}

    def run(
        self,
        name: str,
        settings: Sequence[Any],
        compute: Callable[[Work], Result],
        *,
        save: Callable[[Result, Path], None] | None = None,
        recall: Callable[[Path], Result] | None = None,
    ) -> Result:
        """Run one stage, or recall its saved result; its key depends on its settings and on all stages before it.

        Args:
            compute: is given the work in a folder of the stage's own.
            save, recall: how a result becomes a file and comes back; without them only its pieces are remembered.
        """
        self.key = hash_of(self.key, name, *settings)
        start = time.monotonic()
        work = self.work.within(f"{name}-{self.key[:16]}")
        assert work.folder is not None
        path = work.folder / "result.safetensors"
        result = self.ranks.agree(lambda: _recalled(path, recall))
        if result is None:
            result = compute(work)
            if save is not None and self.ranks.first:
                with appearing_whole(path) as temporary:
                    save(result, temporary)
        return_freed_memory()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        seconds = round(time.monotonic() - start, 3)
        self.record[name] = {"seconds": seconds, "peak_memory_bytes": peak, "settings": self.key}
        return result


def _recalled(path: Path, recall: Callable[[Path], Result] | None) -> Result | None:
    """A saved result; None where there is none, or a broken one."""
    if recall is None or not path.exists():
        return None
    try:
        return recall(path)
    except (OSError, ValueError, SafetensorError):
        return None


def hash_of(*parts: Any) -> str:
    """SHA-256 of plain values and dataclasses, by their JSON."""
    plain = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) and not isinstance(p, type) else p for p in parts]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def tensor_hash(x: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()

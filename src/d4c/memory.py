"""Memory: how much there is, and freed memory back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

# What a Linux container may use, in bytes, with control groups of version 2 and of version 1.
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def total_memory(device: torch.device) -> float:
    """Bytes that a device has in all, or a container may use of them; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if sys.platform == "win32":
        return float("inf")
    return min(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), container_limit(CONTAINER_LIMITS))


def container_limit(files: Sequence[Path]) -> float:
    """The first limit that one of the files tells, in bytes; infinite where none does, or says "max"."""
    for path in files:
        try:
            return float(path.read_text())
        except (OSError, ValueError):
            continue
    return float("inf")


def return_freed_memory() -> None:
    """Give back what glibc keeps of freed memory for later, so that a long run needs what its largest work needs.

    No other system needs it.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

"""Memory: how much there is, and freed memory back to the system."""

from __future__ import annotations

import ctypes
import os
import sys

import torch


def total_memory(device: torch.device) -> float:
    """Bytes that a device has in all, in use or not; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if sys.platform == "win32":
        return float("inf")
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def return_freed_memory() -> None:
    """Give back what glibc keeps of freed memory for later, so that a long run needs what its largest work needs.

    No other system needs it.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

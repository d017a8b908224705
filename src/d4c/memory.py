"""Memory that was freed goes back to the system, so that a long run needs what its largest piece of work needs."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Give back what glibc keeps of freed memory for later; no other system needs it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

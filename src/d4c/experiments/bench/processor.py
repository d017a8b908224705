"""Which processor this is, and which instructions for integers it has."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

# Linux's names of the flags that decide which kernels run, and how people write them.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX",
    "asimddp": "dot product",
    "i8mm": "int8 matrix product",
}
CPUINFO = Path("/proc/cpuinfo")


def processor(cpuinfo: Path = CPUINFO) -> dict[str, Any]:
    """Describe the processor.

    Returns:
        `name`; `features`: those of `FEATURES` that it has, None where the system does not tell; `cores`; `load`: tasks
        that ran or waited for a core in the last minute, before any measurement.
    """
    about: dict[str, Any] = {"name": platform.processor() or platform.machine(), "features": None}
    if cpuinfo.exists():
        about |= parse_cpuinfo(cpuinfo.read_text(encoding="utf-8"))
    return about | {"system": platform.system(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """Name and features of the first processor in /proc/cpuinfo."""
    first: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            first.setdefault(key.strip(), value.strip())
    flags = first.get("flags", first.get("Features", "")).split()
    found = {"features": [name for flag, name in FEATURES.items() if flag in flags]}
    return found | ({"name": first["model name"]} if "model name" in first else {})


def in_words(about: dict[str, Any]) -> str:
    """One line on the processor."""
    features = about["features"]
    told = "features unknown" if features is None else ", ".join(features) or "none of AVX2, VNNI, AMX"
    if features is not None and not any("VNNI" in f or f == "AMX" for f in features) and "AVX2" in features:
        told += ", no VNNI"
    return f"{about['name']} ({told}), {about['cores']} cores, load {about['load']} before"

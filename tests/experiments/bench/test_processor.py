import os
from pathlib import Path

from d4c.experiments.bench.processor import in_words, parse_cpuinfo, processor

ZEN4 = """processor\t: 0
model name\t: AMD EPYC 9354
flags\t\t: fpu avx avx2 avx512f avx512_vnni

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU part\t: 0xd40\n"


def test_features_are_those_of_the_first_processor() -> None:
    assert parse_cpuinfo(ZEN4) == {"name": "AMD EPYC 9354", "features": ["AVX2", "AVX-512", "AVX-512 VNNI"]}


def test_arm_tells_features_but_no_name() -> None:
    assert parse_cpuinfo(GRAVITON) == {"features": ["dot product", "int8 matrix product"]}


def test_a_system_without_cpuinfo_knows_no_features(tmp_path: Path) -> None:
    about = processor(tmp_path / "missing")
    assert about["features"] is None
    assert about["name"]
    assert about["cores"] == os.cpu_count()
    assert "features unknown" in in_words(about)


def test_an_avx2_processor_is_told_to_lack_vnni() -> None:
    about = {"name": "Zen 3", "features": ["AVX2"], "cores": 2, "load": 0.0}
    assert in_words(about) == "Zen 3 (AVX2, no VNNI), 2 cores, load 0.0 before"
    about["features"] = ["AVX2", "AVX-VNNI"]
    assert "no VNNI" not in in_words(about)

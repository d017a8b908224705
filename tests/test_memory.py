"""How much memory there is."""

from pathlib import Path

import pytest
import torch

from d4c import memory
from d4c.memory import container_limit, total_memory

CPU = torch.device("cpu")


def test_a_container_has_what_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = total_memory(CPU)
    (tmp_path / "memory.max").write_text("1048576\n")
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", (tmp_path / "missing", tmp_path / "memory.max"))
    assert total_memory(CPU) == 1048576 < whole
    (tmp_path / "memory.max").write_text("9223372036854771712\n")  # how version 1 says that there is none
    assert total_memory(CPU) == whole


@pytest.mark.parametrize("content", ["max\n", ""])
def test_no_limit_is_infinite(tmp_path: Path, content: str) -> None:
    (tmp_path / "limit").write_text(content)
    assert container_limit([tmp_path / "limit"]) == container_limit([tmp_path / "missing"]) == float("inf")

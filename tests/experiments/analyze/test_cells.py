from pathlib import Path

import pytest

from d4c.experiments.analyze.cells import Cells


def test_a_measured_cell_is_not_measured_again(tmp_path: Path) -> None:
    calls = []

    def measure() -> dict[str, float]:
        calls.append(1)
        return {"error": 0.5}

    for _ in range(2):
        assert Cells(tmp_path, ["model"]).get("part", "name", [1], measure) == {"error": 0.5}
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("environment", "part", "name", "settings"),
    [("other", "p", "n", 1), ("model", "q", "n", 1), ("model", "p", "m", 1), ("model", "p", "n", 2)],
)
def test_whatever_determines_a_cell_keeps_it_apart(
    tmp_path: Path, environment: str, part: str, name: str, settings: int
) -> None:
    Cells(tmp_path, ["model"]).get("p", "n", [1], lambda: {"error": 0.5})
    assert Cells(tmp_path, [environment]).get(part, name, [settings], lambda: {"error": 2.0}) == {"error": 2.0}


def test_a_broken_cell_is_measured_again(tmp_path: Path) -> None:
    cells = Cells(tmp_path, [])
    cells.get("p", "n", [], lambda: {"error": 0.5})
    for broken in ('{"error": 0.', "[1]"):
        cells.path("p", "n", []).write_text(broken)
        assert cells.get("p", "n", [], lambda: {"error": 1.5}) == {"error": 1.5}


def test_a_crash_leaves_no_cell_and_not_a_number_is_none(tmp_path: Path) -> None:
    def crash() -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cells(tmp_path, []).get("p", "n", [], crash)
    with pytest.raises(ValueError, match="not JSON compliant"):
        Cells(tmp_path, []).get("p", "n", [], lambda: {"error": float("nan")})
    assert not list(tmp_path.rglob("*.json"))

from pathlib import Path

import numpy as np
import pytest

from d4c.artifact import Work, user_cache
from d4c.artifact.work import appearing_whole


def arrays() -> dict[str, np.ndarray]:
    return {
        "weights": np.arange(12, dtype=np.float32).reshape(3, 4),
        "codes": np.array([-8, 7], np.int8),
        "transposed": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "empty": np.zeros((0, 3), np.float32),
        "mask": np.array([True, False]),
        "step": np.array(7),  # no axis
        "odd": np.array([np.nan, np.inf, -0.0], np.float32),
    }


def test_what_is_kept_is_recalled_bit_by_bit(tmp_path: Path) -> None:
    Work(tmp_path / "new" / "folder").keep("piece", arrays())
    recalled = Work(tmp_path / "new" / "folder").recall("piece")  # another run
    assert recalled is not None
    assert set(recalled) == set(arrays())
    for name, array in arrays().items():
        assert (recalled[name].dtype, recalled[name].shape) == (array.dtype, array.shape), name
        assert recalled[name].tobytes() == array.tobytes(), name


def test_keeping_changes_no_array(tmp_path: Path) -> None:
    given = arrays()
    Work(tmp_path).keep("piece", given)
    assert all(given[name].tobytes() == array.tobytes() for name, array in arrays().items())


def test_a_piece_nobody_kept_is_none(tmp_path: Path) -> None:
    Work(tmp_path).keep("this", arrays())
    assert Work(tmp_path).recall("that") is None
    assert Work(tmp_path / "none").recall("this") is None


def test_the_later_of_two_pieces_with_one_name_stays(tmp_path: Path) -> None:
    work = Work(tmp_path)
    for value in (1, 2):
        work.keep("state", {"x": np.array([value])})
    recalled = work.recall("state")
    assert recalled is not None
    assert recalled["x"].tolist() == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]  # nothing temporary is left


def test_a_half_written_file_is_not_recalled(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.keep("piece", {"x": np.arange(5, dtype=np.float32)})
    path = tmp_path / "piece.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert work.recall("piece") is None, length
    path.write_bytes(whole)
    assert work.recall("piece") is not None


def test_a_run_killed_while_writing_leaves_the_piece_before(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.keep("state", {"x": np.array([1])})
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the writer says to what it cannot write
        work.keep("state", {"x": np.array([2]), "y": np.array([object()])})
    (tmp_path / "other.safetensors.123.tmp").write_bytes(b"half")
    recalled = work.recall("state")
    assert recalled is not None
    assert recalled["x"].tolist() == [1]
    assert work.recall("other") is None


def test_parts_of_the_work_do_not_see_each_others_pieces(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.within("image").keep("block", {"x": np.array([1])})
    work.within("text").keep("block", {"x": np.array([2])})
    for name, value in (("image", 1), ("text", 2)):
        recalled = Work(tmp_path / name).recall("block")
        assert recalled is not None
        assert recalled["x"].tolist() == [value]
    assert work.recall("block") is None


def test_work_without_a_folder_forgets_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = Work()
    for part in (work, work.within("image")):
        part.keep("piece", arrays())
        assert part.recall("piece") is None
    assert list(tmp_path.iterdir()) == []


def test_parts_report_to_the_same_ear(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    work = Work(tmp_path, lambda *what: heard.append(what))
    work.within("image").within("blocks").report("learn", 3, 10)
    assert heard == [("learn", 3, 10)]


def test_the_users_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/d4c")
    monkeypatch.setenv("D4C_CACHE", "/elsewhere")
    assert user_cache() == Path("/elsewhere")
    monkeypatch.delenv("D4C_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache" / "d4c"


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"

    def fail() -> None:
        with appearing_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not path.exists()
    with appearing_whole(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"

"""Ray beside a pool of processes: the same results, the same errors."""

import os
from collections.abc import Iterator

import pytest

from d4c.errors import MissingExtraError, RunError
from d4c.experiments.ray_executor import RayExecutor


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    executor = RayExecutor(1, gpu=True)  # without any GPU the calls run all the same
    yield executor
    executor.shutdown()


def test_calls_run_in_other_processes(executor: RayExecutor) -> None:
    futures = [executor.submit(os.getppid), executor.submit(divmod, 7, 2), executor.submit(int, "11", base=2)]
    parent, *others = (future.result(timeout=120) for future in futures)
    assert parent not in (os.getpid(), os.getppid())
    assert others == [(3, 1), 3]


def test_errors_come_back_as_they_were_raised(executor: RayExecutor) -> None:
    error = executor.submit(int, "three").exception(timeout=120)
    assert type(error) is ValueError
    assert str(error) == "invalid literal for int() with base 10: 'three'"


def test_a_process_that_always_dies_is_one_line(executor: RayExecutor) -> None:
    error = executor.submit(os._exit, 3).exception(timeout=120)
    assert isinstance(error, RunError)
    assert "\n" not in str(error)


def test_no_ray_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"d4c\[ray\]"):
        RayExecutor(1, gpu=False)

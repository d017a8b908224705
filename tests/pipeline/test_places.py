import pytest
import torch

from d4c.errors import UsageError
from d4c.pipeline.places import resolve_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_the_users_error() -> None:
    assert resolve_device("cuda:1").index == 1
    with pytest.raises(UsageError, match="no such device: 'cuda:2'; there are 2"):
        resolve_device("cuda:2")


@pytest.mark.usefixtures("two_gpus")
def test_processes_of_one_machine_take_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        found.append(resolve_device("cuda").index)
    assert found == [0, 1, 0]

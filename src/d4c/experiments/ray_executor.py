"""Ray as one more `concurrent.futures.Executor`: what a pool of processes does here, on all machines of a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from d4c.errors import MissingExtraError, RunError

T = TypeVar("T")


class RayExecutor(Executor):
    """Runs calls as Ray tasks: on the cluster of RAY_ADDRESS or of this machine, else on a new one of this machine.

    A call whose machine or process is lost is made again elsewhere; what it finished is on the shared disk.

    Args:
        threads: processors that a call occupies; gpu: whether it takes a GPU where the cluster has any.

    Raises:
        MissingExtraError: Ray is not installed.
        RunError: the cluster does not answer.
    """

    def __init__(self, threads: int, *, gpu: bool) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "running on Ray") from error
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(f"Ray does not start: {' '.join(str(error).split())[:300]}") from error
        self._ray = ray
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._call: Any = ray.remote(num_cpus=threads, num_gpus=1 if gpu and resources.get("GPU") else 0)(_call)

    def submit(self, function: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:
        """Start a call; function, arguments and result are pickled."""
        future: Future[T] = Future()
        reference = self._call.remote(function, arguments, named)
        reference.future().add_done_callback(lambda done: _pass_on(done, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Leave the cluster; calls that still run end with it."""
        self._ray.shutdown()


def _call(function: Callable[..., T], arguments: tuple[Any, ...], named: dict[str, Any]) -> T:
    return function(*arguments, **named)


def _pass_on(done: Future[T], future: Future[T]) -> None:
    error = done.exception()
    if error is None:
        future.set_result(done.result())
        return
    # An error of the call comes wrapped together with its traceback as text.
    cause = getattr(error, "cause", None)
    future.set_exception(cause if isinstance(cause, Exception) else RunError(" ".join(str(error).split())[:300]))

"""What follows a training: the live page of `--watch`, and the logs of `--log`.

Each is a follower: it gets the events that `ikebana.listen` gives, and is told how the call ended.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

from ikebana.errors import IkebanaError, RecipeError, get_first_line
from ikebana.system import progress
from ikebana.system.launch import read_launch

LogName = Literal["tensorboard", "mlflow"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Follower(Protocol):
    """Something that follows the events of a training."""

    def on_event(self, event: dict[str, Any]) -> None: ...
    def close(self, error: BaseException | None) -> None: ...


@contextmanager
def follow(*, watch: bool = False, log: str | Sequence[str] = ()) -> Iterator[None]:
    """Show the training within this block on a live page, and log it.

    Args:
        watch: serve a page on this machine, and report its address.
        log: "tensorboard", "mlflow" or both.
    Raises:
        RecipeError: there is no such log.
        MachineError: a library is missing, or no port is free.
    """
    names = (log,) if isinstance(log, str) else tuple(log)
    makers = [_get_log_maker(name) for name in dict.fromkeys(names)]
    if watch:
        makers.append(_make_live_page)
    with ExitStack() as stack:
        for make in makers:
            stack.enter_context(_attach(make()))
        yield


def followed(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Follow the calls of a function as its arguments `watch` and `log` say."""

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        watch, log = kwargs.get("watch", False), kwargs.get("log", ())
        if not read_launch().is_leader:
            watch, log = False, ()
        with follow(watch=watch, log=log):  # pyright: ignore[reportArgumentType] -- as the function declares them
            return function(*args, **kwargs)

    return call


def _get_log_maker(name: str) -> Callable[[], Follower]:
    from ikebana.tracking.mlflow_log import MlflowLog
    from ikebana.tracking.tensorboard_log import TensorBoardLog

    makers: dict[str, Callable[[], Follower]] = {"tensorboard": TensorBoardLog, "mlflow": MlflowLog}
    if name not in makers:
        raise RecipeError(f"there is no log {name!r}", advice=" or ".join(f"--log {known}" for known in makers))
    return makers[name]


def _make_live_page() -> Follower:
    from ikebana.tracking.live_server import LivePage

    return LivePage()


@contextmanager
def _attach(follower: Follower) -> Iterator[None]:
    """Give the follower the events of this block, and tell it how the block ended."""
    guarded = _GuardedFollower(follower)
    try:
        with progress.listen(guarded.on_event):
            yield
    except BaseException as error:
        guarded.close(error)
        raise
    guarded.close(None)


class _GuardedFollower:
    """A follower whose failure ends neither the training nor the call."""

    def __init__(self, follower: Follower):
        self.follower, self.has_failed = follower, False

    def on_event(self, event: dict[str, Any]) -> None:
        if not self.has_failed:
            self._call(lambda: self.follower.on_event(event))

    def close(self, error: BaseException | None) -> None:
        self._call(lambda: self.follower.close(error))

    def _call(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:
            # Set first: the warning is an event as well.
            self.has_failed = True
            reason = (
                error.what if isinstance(error, IkebanaError) else f"{type(error).__name__}: {get_first_line(error)}"
            )
            progress.warn(f"{type(self.follower).__name__} has stopped, the training goes on: {reason}")

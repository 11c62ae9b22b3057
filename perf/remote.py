"""An object in a spawned process, called through a pipe.

Clients of a bench live here: never forked (their heap is their own), with the affinity of the
bench. The process ends with its parent's end of the pipe, with `close`, or is killed by its pid.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

T = TypeVar("T")
_GONE_S: Final = 5.0


class RemoteError(RuntimeError):
    """What the other process raised, with its traceback as text."""


class NoAnswer(RemoteError):
    """The other process did not answer within the limit, and was killed."""


class Remote(Generic[T]):
    """`factory(*args)` in a process of its own; `factory` and arguments are pickled.

    `limit_s` bounds what `finish` waits for an answer; None: as long as it takes.
    """

    limit_s: float | None = None

    def __init__(self, factory: Callable[..., T], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, factory, args), name="bench-client", daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            self.finish()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method there and returns what it returns; raises RemoteError."""
        self.start(method, *args)
        return self.finish()

    def start(self, method: str, *args: Any) -> None:
        """Begins a call; `finish` waits for its end."""
        self._ours.send((method, args))

    def finish(self) -> Any:
        """What the call that was begun returns; raises RemoteError, NoAnswer."""
        if not self._ours.poll(self.limit_s):
            self.kill()
            raise NoAnswer(f"no answer from the client after {self.limit_s} s")
        try:
            good, value = self._ours.recv()
        except EOFError:
            self._process.join(_GONE_S)
            raise RemoteError(f"the client ended: exit code {self._process.exitcode}") from None
        if not good:
            raise RemoteError(value)
        return value

    @contextlib.contextmanager
    def meanwhile(self, method: str, *args: Any) -> Iterator[list[Any]]:
        """A call that runs while the body does; its answer is in the list afterwards."""
        answer: list[Any] = []
        self.start(method, *args)
        try:
            yield answer
        except NoAnswer:
            raise
        except BaseException:
            with contextlib.suppress(RemoteError):  # the body's error is the one to tell
                self.finish()
            raise
        answer.append(self.finish())

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """Lets the object close itself; kills a process that doesn't end."""
        with contextlib.suppress(OSError):
            self._ours.send(None)
        self._process.join(_GONE_S)
        if self._process.is_alive():
            self.kill()
        self._ours.close()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        self.close()


def _serve(pipe: Connection, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bench decides when to end
    with contextlib.suppress(EOFError, BrokenPipeError), contextlib.ExitStack() as stack:
        try:
            target = factory(*args)
        except Exception:
            pipe.send((False, traceback.format_exc()))
            return
        close = getattr(target, "close", None)
        if close is not None:
            stack.callback(close)
        pipe.send((True, os.getpid()))
        while (order := pipe.recv()) is not None:
            method, given = order
            try:
                answer = (True, getattr(target, method)(*given))
            except Exception:
                answer = (False, traceback.format_exc())
            pipe.send(answer)


__all__ = ["NoAnswer", "Remote", "RemoteError"]

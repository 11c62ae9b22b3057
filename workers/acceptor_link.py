"""A worker's side of the talk with its acceptor: says hello, answers what it is asked.

Every worker has one, on a DEALER socket to `workers` (docs/ARCHITECTURE.md, Control), in its main
thread. The other side is `worker_link.py`.

Invariants: each request is answered once, by what its operation returns or raises, or later by
`reply` when it returned None; what an operation can't do never ends the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.workers import logfile

_LAST_WORDS_MS: Final = 1000  # how long a worker that ends waits for its last answer to be taken

Operation = Callable[[messages.Request], Mapping[str, Any] | None]


class AcceptorLink:
    """See the module. `socket` is to be watched, and `receive` called when it can be read."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        who: str,
        operations: Mapping[str, Operation],
    ) -> None:
        """Connects nothing yet. `who` is for errors; every worker knows `log` besides."""
        self._address, self._who = address, who
        self._operations = {"log": _log_file, **operations}
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.linger = _LAST_WORDS_MS

    def hello(self, **who: Any) -> None:
        """Connects, and says which worker is there: its `writer` or `worker` name, its `pid`."""
        self.socket.connect(self._address)
        self.socket.send(messages.encode_request("hello", 0, **who))

    def receive(self) -> None:
        """Answers all that has come, until nothing is left: a descriptor tells of edges only."""
        while True:
            try:
                message = messages.decode(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            if isinstance(message, messages.Request):
                self._answer(message)

    def reply(self, request: messages.Request, answer: Mapping[str, Any]) -> None:
        """Answers what was not answered at once; with an error if that would be too long."""
        try:
            self.socket.send(messages.encode_reply(request.id, answer))
        except errors.InvalidRequest as error:
            self.socket.send(messages.encode_error(request.id, error))

    def tell(self, event: str, **args: Any) -> None:
        """Says something unasked."""
        self.socket.send(messages.encode_event(event, **args))

    def close(self) -> None:
        """Returns at once; what was said last is still delivered while the process ends."""
        self.socket.close()

    def _answer(self, request: messages.Request) -> None:
        try:
            operation = self._operations.get(request.op)
            if operation is None:
                raise errors.InvalidRequest(f"{self._who} knows no operation {request.op!r}")
            answer = operation(request)
        except (errors.ShmbrokerError, OSError) as error:
            self.socket.send(messages.encode_error(request.id, error))
            return
        if answer is not None:
            self.reply(request, answer)


def _log_file(request: messages.Request) -> Mapping[str, Any]:
    """The broker's log goes on in a new file of that name."""
    logfile.reopen(request.arg("path", str))
    return {}


__all__ = ["AcceptorLink", "Operation"]

"""A reader process: streams of record batches to remote consumers, over TCP and a Unix socket.

One thread: the acceptor's requests over ZeroMQ, and everything of the streams (`streams/server.py`)
behind one descriptor. Beside it: the connection's thread, the Watcher's in C, and one for calls
that wait. It attaches to the broker as a local client does, and writes no shared byte but park
words.

Ends when told to (`stop`: Closing to all peers, frames that have begun go out), or with its
acceptor (lifecycle.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Final

import zmq

from shmbroker.client.client import Client, connect
from shmbroker.control import messages
from shmbroker.control.listening import NetworkSpec
from shmbroker.workers import logs
from shmbroker.workers.acceptor_link import AcceptorLink
from shmbroker.workers.lifecycle import adopt_parent
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop
from shmbroker.workers.streams.door import Door, open_tcp, open_unix
from shmbroker.workers.streams.server import Streams

_ATTACH_S: Final = 10.0
_DRAIN_S: Final = 2.0  # for frames that have begun; a peer that doesn't read holds nobody up
_DRAIN_STEP_S: Final = 0.02
_log = get_logger("shmbroker.reader")


class Reader:
    """One reader's control plane; everything in one thread."""

    def __init__(self, spec: NetworkSpec, client: Client) -> None:
        self._spec = spec
        self._loop = Loop()
        self._streams = Streams(
            client, open_doors(spec), spec.tokens, spec.listen, self._loop.after, self._broker_gone
        )
        operations = {"status": self._status, "stop": self._stop}
        self._acceptor = AcceptorLink(
            zmq.Context.instance(), spec.workers_address, "a reader", operations
        )

    def run(self) -> None:
        """Serves until told to stop."""
        acceptor = self._acceptor
        acceptor.hello(worker=self._spec.name, pid=os.getpid())
        self._streams.watch(int(acceptor.socket.getsockopt(zmq.FD)), acceptor.receive)
        try:
            acceptor.receive()
            self._loop.run_with(self._streams.turn)
        finally:
            self._streams.close()
            self._loop.close()
            acceptor.close()

    def _stop(self, request: messages.Request) -> None:
        """Closing to all peers; answered, and over, when the frames that had begun are out."""
        given = request.args.get("drain_s")
        drain_s = _DRAIN_S if given is None else min(_DRAIN_S, float(given))
        self._streams.stop_accepting()
        self._drain(request, time.monotonic() + drain_s)

    def _drain(self, request: messages.Request, deadline: float) -> None:
        if self._streams.peers and time.monotonic() < deadline:
            self._loop.after(_DRAIN_STEP_S, lambda: self._drain(request, deadline))
            return
        self._acceptor.reply(request, {"drained": not self._streams.peers})
        self._loop.stop()

    def _status(self, _request: messages.Request) -> Mapping[str, Any]:
        return {"pid": os.getpid(), **self._streams.describe()}

    def _broker_gone(self) -> None:
        """The acceptor has died or let go of us: whoever succeeds it starts readers of its own."""
        _log.warning("the broker is gone")
        self._loop.stop()


def open_doors(spec: NetworkSpec) -> list[Door]:
    """Binds what the spec names; raises OSError when one is taken."""
    doors: list[Door] = []
    try:
        if spec.tcp is not None:
            doors.append(open_tcp(*spec.tcp, spec.tls))
        if spec.unix_path is not None:
            doors.append(open_unix(spec.unix_path))
    except BaseException:
        for door in doors:
            door.close()
        raise
    return doors


def main(spec: NetworkSpec) -> None:
    """A reader process, from its start to its end."""
    adopt_parent(spec)
    logs.set_process(spec.name)
    with connect(str(spec.runtime_dir), timeout=_ATTACH_S) as client:
        Reader(spec, client).run()


__all__ = ["Reader", "main", "open_doors"]

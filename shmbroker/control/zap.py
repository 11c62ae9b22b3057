"""Whom ZeroMQ lets in: ZAP (rfc.zeromq.org/spec/27), answered out of a directory of public keys.

libzmq asks at every CURVE handshake, over `inproc://zeromq.zap.01` of its context, and refuses a
peer by itself whose own key is not sound. Belongs to one context and one thread, which calls
`answer` whenever `socket` can be read: the acceptor's for control, the ingress process' for
batches. The directory is looked at again when it has changed, so a key that was taken away opens
no new connection; on those that stand `knows` tells.

Invariants: whatever is not CURVE with a key of that directory is refused; nothing raises.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from shmbroker.control.keys import KeyDirectory, read_secret
from shmbroker.control.listening import CurveFiles

_ENDPOINT: Final = "inproc://zeromq.zap.01"
DOMAIN: Final = b"shmbroker"


class Gate:
    """The ZAP handler of a context; make it before a socket is bound behind it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], authorized: Path) -> None:
        self._directory = KeyDirectory(authorized.parent)
        self._authorized = authorized
        self._stamp: tuple[int, ...] = ()
        self._changed_ns = -1  # of the directory itself
        self._names: dict[bytes, str] = {}  # by public key in Z85
        self.refused = 0
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(_ENDPOINT)

    def answer(self) -> None:
        """Answers what has been asked so far."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if b"" not in frames:
                continue
            cut = frames.index(b"") + 1
            envelope, asked = frames[:cut], frames[cut:]
            self.socket.send_multipart([*envelope, *self._decide(asked)], zmq.NOBLOCK)

    def names(self) -> dict[bytes, str]:
        """Who may come, by public key (Z85), as the directory says now."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            self._names = {key: name for name, key in self._directory.clients().items()}
        return self._names

    def knows(self, name: str) -> bool:
        """Whether a key of that name may still come: cheap, to be asked at each message."""
        try:
            changed_ns = os.stat(self._authorized).st_mtime_ns
        except OSError:
            changed_ns = -1
        if changed_ns != self._changed_ns:
            self._changed_ns = changed_ns
            self.names()
        return name in self._names.values()

    def close(self) -> None:
        """After the sockets behind it."""
        self.socket.close(linger=0)

    def _decide(self, asked: list[bytes]) -> list[bytes]:
        version, request, _domain, _address, _identity, mechanism = (*asked, *[b""] * 6)[:6]
        name = None
        if version == b"1.0" and mechanism == b"CURVE" and len(asked) == 7 and len(asked[6]) == 32:
            name = self.names().get(z85.encode(asked[6]))
        if name is None:
            self.refused += 1
            return [b"1.0", request, b"400", b"this key is not authorised", b"", b""]
        return [b"1.0", request, b"200", b"OK", name.encode(), b""]

    def _look(self) -> tuple[int, ...]:
        """Changes whenever a key comes, goes or is written anew."""
        found: list[int] = []
        try:
            with os.scandir(self._authorized) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    at = entry.stat()
                    found += [at.st_ino, at.st_mtime_ns, at.st_size]
        except OSError:
            return ()
        return (len(found), *found)


def guard(sock: zmq.Socket[bytes], files: CurveFiles) -> None:
    """Makes `sock` a CURVE server, before it is bound. ConfigError if the key can't be read."""
    _public, secret = read_secret(files.secret)
    sock.setsockopt(zmq.CURVE_SERVER, 1)
    sock.setsockopt(zmq.CURVE_SECRETKEY, secret)
    sock.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)


__all__ = ["DOMAIN", "Gate", "guard"]

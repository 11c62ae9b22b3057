"""Whom ZeroMQ lets in: ZAP (rfc.zeromq.org/spec/27), answered out of a directory of public keys.

libzmq asks at every CURVE handshake, over `inproc://zeromq.zap.01` of its context, and refuses a
peer by itself whose own key is not sound. Belongs to one context and one thread, which calls
`answer` whenever `socket` can be read: the acceptor's for control, the ingress process' for
batches. The directory is looked at again when it has changed, so a key that was taken away opens
no new connection; on those that stand `authorized.knows` tells.

Invariants: whatever is not CURVE with a key of that directory is refused; nothing raises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from shmbroker.control.authorized import Authorized
from shmbroker.control.keys import read_secret
from shmbroker.control.listening import CurveFiles

_ENDPOINT: Final = "inproc://zeromq.zap.01"
DOMAIN: Final = b"shmbroker"


class Gate:
    """The ZAP handler of a context; make it before a socket is bound behind it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], authorized: Path) -> None:
        self.authorized = Authorized(authorized)
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

    def close(self) -> None:
        """After the sockets behind it."""
        self.socket.close(linger=0)

    def _decide(self, asked: list[bytes]) -> list[bytes]:
        version, request, _domain, _address, _identity, mechanism = (*asked, *[b""] * 6)[:6]
        name = None
        if version == b"1.0" and mechanism == b"CURVE" and len(asked) == 7 and len(asked[6]) == 32:
            name = self.authorized.names().get(z85.encode(asked[6]))
        if name is None:
            self.refused += 1
            return [b"1.0", request, b"400", b"this key is not authorised", b"", b""]
        return [b"1.0", request, b"200", b"OK", name.encode(), b""]


def guard(sock: zmq.Socket[bytes], files: CurveFiles) -> None:
    """Makes `sock` a CURVE server, before it is bound. ConfigError if the key can't be read."""
    _public, secret = read_secret(files.secret)
    sock.setsockopt(zmq.CURVE_SERVER, 1)
    sock.setsockopt(zmq.CURVE_SECRETKEY, secret)
    sock.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)


__all__ = ["DOMAIN", "Gate", "guard"]

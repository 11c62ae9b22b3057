"""A TCP proxy that cuts each connection after some bytes, in whatever they are in the midst of."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading

_CHUNK = 16_384


class CuttingProxy:
    """Forwards to one address. `budgets`: (least, most) bytes up and down until it cuts."""

    def __init__(
        self, to: tuple[str, int], up: tuple[int, int], down: tuple[int, int], seed: int
    ) -> None:
        self.cuts = 0
        self.calm = False  # cuts no more
        self._to, self._budgets, self._rng = to, (up, down), random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop, self._stopped = socket.socketpair()
        self._select = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """For ZeroMQ."""
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Cuts what is left."""
        self._stop.close()
        self._thread.join()

    def _run(self) -> None:
        self._select.register(self._listener, selectors.EVENT_READ, None)
        self._select.register(self._stopped, selectors.EVENT_READ, None)
        while True:
            for key, _ in self._select.select():
                if key.fileobj is self._stopped:
                    self._end()
                    return
                if key.fileobj is self._listener:
                    self._connect()
                elif key.fd in self._select.get_map():  # not cut a moment ago
                    self._forward(key.fileobj, key.data)

    def _connect(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._to, 5)
        except OSError:  # it is just being restarted
            near.close()
            return
        for source, sink, budget in zip((near, far), (far, near), self._budgets, strict=True):
            self._select.register(
                source, selectors.EVENT_READ, [source, sink, self._rng.randint(*budget)]
            )

    def _forward(self, source: object, way: list[object]) -> None:
        _, sink, left = way
        assert isinstance(source, socket.socket)
        assert isinstance(sink, socket.socket)
        assert isinstance(left, int)
        try:
            data = source.recv(_CHUNK if self.calm else min(_CHUNK, left))
            sink.sendall(data)
        except OSError:
            data = b""
        if not self.calm:
            way[2] = left - len(data)
        if not data or way[2] == 0:
            self.cuts += bool(data)
            self._cut(source, sink)

    def _cut(self, *ends: socket.socket) -> None:
        for end in ends:
            self._select.unregister(end)
            with contextlib.suppress(OSError):  # a reset, so nothing more arrives
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()

    def _end(self) -> None:
        for key in list(self._select.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._select.close()


__all__ = ["CuttingProxy"]

"""A wire between a client and a port that a test can cut, stall and slow down.

One thread a connection and direction. Bytes are counted from the moment that a knob is set, so a
cut falls in the middle of whatever is on its way.
"""

from __future__ import annotations

import contextlib
import socket
import threading

_NEVER = 1 << 60


class TcpProxy:
    """Listens on a free port of loopback and leads to `port`."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.connections = 0
        self.up_bytes = self.down_bytes = 0  # to the port, and back
        self.cuts = 0
        self._cut_after = {"up": _NEVER, "down": _NEVER}
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    @property
    def address(self) -> str:
        """For ZeroMQ."""
        return f"tcp://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Every connection, now, by reset."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            self._end(pair)

    def cut_after(self, direction: str, size: int) -> None:
        """The connection over which that byte comes; once."""
        with self._lock:
            self._cut_after[direction] = size

    def stall(self) -> None:
        """Takes nothing any more, in either direction; nobody is told."""
        self._flowing.clear()

    def flow(self) -> None:
        """Goes on."""
        self._flowing.set()

    def close(self) -> None:
        """Ends everything and waits for it."""
        self._closed = True
        self._flowing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(40)

    def _start(self, run: object, *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket()
            try:
                far.connect(("127.0.0.1", self.target))
            except OSError:
                near.close()
                far.close()
                continue
            pair = (near, far)
            with self._lock:
                self.connections += 1
                self._pairs.add(pair)
            self._start(self._carry, near, far, "up", pair)
            self._start(self._carry, far, near, "down", pair)
            if self._closed:
                self.cut()

    def _carry(
        self,
        source: socket.socket,
        sink: socket.socket,
        direction: str,
        pair: tuple[socket.socket, socket.socket],
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._flowing.wait()
                data = source.recv(65536)
                self._flowing.wait()
                if not data:
                    break
                with self._lock:
                    left = self._cut_after[direction]
                    falls = len(data) >= left
                    self._cut_after[direction] = _NEVER if falls else left - len(data)
                    self.cuts += falls
                sink.sendall(data[:left] if falls else data)
                if direction == "up":
                    self.up_bytes += len(data)
                else:
                    self.down_bytes += len(data)
                if falls:
                    break
        with self._lock:
            self._pairs.discard(pair)
        self._end(pair)

    @staticmethod
    def _end(pair: tuple[socket.socket, socket.socket]) -> None:
        for sock in pair:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

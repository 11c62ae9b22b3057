"""What bare ZeroMQ does over loopback TCP: the limit of everything that goes through ingress.

A DEALER and a ROUTER, each in a process of its own (`Remote`), with pyzmq and nothing else. Both
ways of measuring are as fair as they get: messages are not copied on their way in or out, as many
are on their way as a session of ingress allows, and each is answered.
"""

from __future__ import annotations

import mmap
import os
import queue
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import zmq

from shmbroker.wire.native.limits import IN_FLIGHT

_HEAD: Final = bytes(44)  # before a batch, as a Produce has
_ANSWER: Final = bytes(32)
_STORE_BYTES: Final = 64 << 20
_STORE_WRITE: Final = 4 << 20  # at most, about, as the broker's
_STORE_UNIT: Final = 4096


class BareRouter:
    """Takes what comes to a ROUTER and answers."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._port = self._socket.bind_to_random_port("tcp://127.0.0.1")

    def address(self) -> str:
        """Where it is."""
        return f"tcp://127.0.0.1:{self._port}"

    def serve(self, count: int) -> None:
        """Answers so many messages with a few bytes and throws them away."""
        for _ in range(count):
            identity = self._socket.recv_multipart(copy=False)[0]
            self._socket.send_multipart([identity.bytes, _ANSWER])

    def store(self, count: int, directory: str) -> None:
        """Answers so many messages when each is on stable storage: the least that a broker does
        which keeps them. One copy, into aligned memory; what came meanwhile is one write."""
        with BareStore(Path(directory), self._socket) as store:
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            poller.register(store.fd, zmq.POLLIN)
            while count:
                ready = dict(poller.poll())
                if store.fd in ready:
                    store.answer()
                if self._socket in ready:
                    store.take(self._socket.recv_multipart(copy=False))
                    count -= 1
            store.finish()

    def echo(self, count: int) -> None:
        """Gives so many messages back."""
        for _ in range(count):
            self._socket.send_multipart(self._socket.recv_multipart())

    def close(self) -> None:
        """Gives the port back."""
        self._context.destroy(linger=0)


class _Message(NamedTuple):
    identity: bytes
    at: int  # in the memory, and in the file
    size: int
    end: int  # of all that was put there, so many bytes


_END: Final = _Message(b"", 0, 0, 0)


class BareStore:
    """Messages into a file by `O_DIRECT` durable writes of a thread's, and answers to who sent."""

    def __init__(self, directory: Path, answers: zmq.Socket[bytes]) -> None:
        self._answers = answers
        self._memory = mmap.mmap(-1, _STORE_BYTES)
        self._bytes = memoryview(self._memory)
        handle, path = tempfile.mkstemp(dir=directory)
        os.close(handle)
        self._path = Path(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
        os.posix_fallocate(self._fd, 0, _STORE_BYTES)  # written over and over, as segments are
        self._came: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._kept: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self.fd = os.eventfd(0)  # something is on storage that is not answered
        self._head = self._taken = 0  # bytes put into the memory, and bytes on storage of these
        self._waiting = 0
        self._thread = threading.Thread(target=self._write_all)
        self._thread.start()

    def take(self, frames: Sequence[zmq.Frame]) -> None:
        """Another message."""
        identity, batch = frames[0].bytes, frames[-1].buffer
        size = -(-len(batch) // _STORE_UNIT) * _STORE_UNIT
        at = self._head % _STORE_BYTES
        if at + size > _STORE_BYTES:
            self._head += _STORE_BYTES - at
            at = 0
        while self._head + size - self._taken > _STORE_BYTES:
            self._answer(self._kept.get())
        self._bytes[at : at + len(batch)] = batch
        self._head += size
        self._waiting += 1
        self._came.put(_Message(identity, at, size, self._head))

    def answer(self) -> None:
        """What is on storage by now."""
        os.eventfd_read(self.fd)
        while not self._kept.empty():
            self._answer(self._kept.get())

    def finish(self) -> None:
        """Answers what is left."""
        while self._waiting:
            self._answer(self._kept.get())

    def _answer(self, message: _Message) -> None:
        self._taken = message.end
        self._waiting -= 1
        self._answers.send_multipart([message.identity, _ANSWER])

    def _write_all(self) -> None:
        carried: _Message | None = None
        while (first := carried or self._came.get()) is not _END:
            carried, run, size = None, [first], first.size
            while size < _STORE_WRITE and not self._came.empty():
                following = self._came.get()
                if following is _END or following.at != first.at + size:
                    carried = following
                    break
                run.append(following)
                size += following.size
            os.pwrite(self._fd, self._bytes[first.at : first.at + size], first.at)
            for message in run:
                self._kept.put(message)
            os.eventfd_write(self.fd, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._came.put(_END)
        self._thread.join()
        os.close(self._fd)
        os.close(self.fd)
        self._path.unlink()
        self._bytes.release()
        self._memory.close()


class BareDealer:
    """Sends the same messages again and again to a BareRouter."""

    def __init__(self, address: str, messages: Sequence[bytes]) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(address)
        self._messages = messages

    def move(self, count: int) -> float:
        """Seconds until so many messages, each behind a head, are answered (`serve`)."""
        sock, messages = self._socket, self._messages
        began, sent = time.perf_counter(), 0
        for answered in range(count):
            while sent < min(count, answered + IN_FLIGHT):
                sock.send(_HEAD, zmq.SNDMORE)
                sock.send(messages[sent % len(messages)], copy=False)
                sent += 1
            sock.recv()
        return time.perf_counter() - began

    def round_trips(self, count: int) -> list[float]:
        """Microseconds until each of so many messages, one at a time, is back (`echo`)."""
        sock, messages, took = self._socket, self._messages, []
        for n in range(count):
            began = time.perf_counter_ns()
            sock.send(messages[n % len(messages)])
            sock.recv()
            took.append((time.perf_counter_ns() - began) / 1e3)
        return took

    def close(self) -> None:
        """Without a word."""
        self._context.destroy(linger=0)


__all__ = ["BareDealer", "BareRouter", "BareStore"]

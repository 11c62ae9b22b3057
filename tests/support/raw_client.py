"""A client that writes its ingress ring byte by byte, rightly or not, attached to a real broker.

Speaks docs/ARCHITECTURE.md's attach and control protocols with the standard library, zmq and the
description in layout.h; shares no code with `shmbroker.client`.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import platform
import socket
import struct
from typing import Any

import zmq
from engine_rig import FRAME, PAGE, RECEIPT, batch

from shmbroker.places import Places

LIMIT_S = 40.0
_FUTEX = {"x86_64": 202, "aarch64": 98}[platform.machine()]
_WRITER_WORD = 2  # SHMB_PARK_WRITER


class RawClient:
    """One attachment with one ring. `with RawClient(places, "t") as raw`."""

    def __init__(self, places: Places, topic: str, *, capacity: int = 1 << 18, slots: int = 64):
        self._maps: list[mmap.mmap] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(LIMIT_S)
        self._socket.connect(places.socket_path("attach"))
        hello = {"v": 1, "op": "attach", "pid": os.getpid(), "name": "raw"}
        self._socket.send(json.dumps(hello).encode())
        self._who = json.loads(self._socket.recv(1 << 16))["ok"]
        self._context = zmq.Context()
        self._control = self._context.socket(zmq.DEALER)
        self._control.linger = 0
        self._control.connect(places.zmq_address("control"))
        self._ids = itertools.count(1)
        (found,) = self.ask("metadata", topics=[topic])["topics"][topic]["partitions"]
        self.writer, self.slot, self.epoch = found["writer"], found["slot"], found["slot_epoch"]
        ring = self.ask("open_ingress", writer=self.writer, capacity=capacity, slots=slots)
        self.ingress = int(ring["ingress"])
        self.capacity, self.slots = int(ring["capacity"]), int(ring["slots"])
        self.ring = self._map(f"i{self.ingress}")
        self.answers = self._map(f"r{self.ingress}")
        self._park = self._map("p")
        self.head = 0
        self.seq = 0

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        """A control request's good answer."""
        who = {"client": self._who["client"], "token": self._who["token"]}
        self._control.send(
            json.dumps({"v": 1, "id": next(self._ids), "op": op, **who, **args}).encode()
        )
        assert self._control.poll(int(LIMIT_S * 1000))
        answer = json.loads(self._control.recv())
        assert "ok" in answer, answer
        ok: dict[str, Any] = answer["ok"]
        return ok

    def _map(self, suffix: str) -> mmap.mmap:
        fd = os.open(f"/dev/shm{self._who['prefix']}-{suffix}", os.O_RDWR)
        try:
            self._maps.append(mmap.mmap(fd, 0))
        finally:
            os.close(fd)
        return self._maps[-1]

    def frame(self, values: list[bytes], **wrong: int) -> bytes:
        """The next frame; `wrong` replaces fields of its header."""
        payload = batch(values)
        fields = {
            "length": len(payload), "acks": 2, "flags": 0, "slot": self.slot, "epoch": self.epoch,
            "seq": self.seq, "spare": 0,
        }  # fmt: skip
        self.seq += 1
        return FRAME.pack(*(fields | wrong).values()) + payload

    def put(self, data: bytes) -> int:
        """Writes bytes at the head without publishing them; returns where they are in the map."""
        at = self.head % self.capacity
        first = data[: self.capacity - at]
        self.ring[PAGE + at : PAGE + at + len(first)] = first
        self.ring[PAGE : PAGE + len(data) - len(first)] = data[len(first) :]
        self.head += -(-len(data) // 8) * 8
        return PAGE + at

    def publish(self, head: int | None = None) -> None:
        """Stores the head and wakes the writer."""
        self.ring[64:72] = struct.pack("<Q", self.head if head is None else head)
        at = 64 * (_WRITER_WORD + self.writer)
        word = ctypes.c_uint32.from_buffer(self._park, at)
        if word.value:
            word.value = 0
            everyone = 2**31 - 1
            ctypes.CDLL(None).syscall(_FUTEX, ctypes.byref(word), 1, everyone, None, None, 0)
        del word

    def word(self, at: int) -> int:
        """Of the receipts' head: 64 tail, 72 receipts, 80 detached."""
        size = "<I" if at == 80 else "<Q"
        return int(struct.unpack_from(size, self.answers, at)[0])

    def error(self, seq: int) -> int:
        """The error in a frame's receipt."""
        return int(RECEIPT.unpack_from(self.answers, PAGE + 64 * (seq % self.slots))[2])

    @property
    def room(self) -> int:
        """Bytes that may be written."""
        return self.capacity - (self.head - self.word(64))

    def is_judged(self) -> bool:
        """Whether all that was published is consumed, or the ring dropped."""
        return self.word(80) != 0 or self.word(64) == self.head

    def close(self) -> None:
        """Hangs up, as a process does that dies."""
        self._socket.close()
        self._control.close()
        self._context.term()
        for found in self._maps:
            found.close()
        self._maps.clear()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

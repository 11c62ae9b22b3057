"""A writer without an engine: speaks the `workers` protocol and keeps no record.

The acceptor's tests start it in place of `shmbroker.workers.writer`. A file `<data>/fake.<writer>`
tells it to misbehave; one word a line: `slow-open`, `refuse-open`, `hang-stop`, `die-once`.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import zmq

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.control.datadir import lock_shared
from shmbroker.control.plan import WriterSpec
from shmbroker.workers.lifecycle import adopt_parent


def main(spec: WriterSpec) -> None:
    """Runs until `stop`."""
    adopt_parent(spec)
    lock = lock_shared(spec.data_dir)
    trick_file = spec.data_dir / f"fake.{spec.writer}"
    tricks = trick_file.read_text().split() if trick_file.exists() else []
    if "die-once" in tricks:
        trick_file.unlink()
        os._exit(7)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 1000
    socket.connect(spec.workers_address)
    hello = messages.encode_request("hello", None, writer=spec.writer, pid=os.getpid())
    socket.send(hello)
    fake = Fake(spec, tricks)
    while not fake.stopped:
        message = messages.decode(socket.recv())
        if not isinstance(message, messages.Request):
            continue
        try:
            answer = messages.encode_reply(message.id, fake.do(message))
        except errors.ShmbrokerError as error:
            answer = messages.encode_error(message.id, error)
        socket.send(answer)
    socket.close()
    context.term()
    lock.release()


class Fake:
    """What the writer would know; every request is noted in `<data>/fake.log`."""

    def __init__(self, spec: WriterSpec, tricks: list[str]) -> None:
        self.spec, self.tricks = spec, tricks
        self.slots: dict[int, dict[str, Any]] = {}
        self.rings: dict[int, dict[str, Any]] = {}
        self.stopped = False
        self.log = spec.data_dir / "fake.log"

    def do(self, request: messages.Request) -> dict[str, Any]:
        """One request."""
        args = dict(request.args)
        with self.log.open("a") as file:
            line = {"writer": self.spec.writer, "pid": os.getpid(), "op": request.op, **args}
            file.write(json.dumps(line) + "\n")
        if request.op == "open":
            if "slow-open" in self.tricks:
                time.sleep(0.7)  # this trick is the time it takes
            if "refuse-open" in self.tricks:
                raise errors.DamagedLog("the fake refuses")
            return {"partitions": [self.assign(slot) for slot in args["slots"]]}
        if request.op == "assign":
            return self.assign(args)
        if request.op == "unassign":
            self.slots.pop(args["slot"])
        elif request.op == "attach_ingress":
            self.rings[args["ingress"]] = args
        elif request.op == "detach_ingress":
            self.rings.pop(args["ingress"], None)
        elif request.op == "status":
            partitions = [{"slot": n, "segments": 1, "io_mode": "direct"} for n in self.slots]
            rings = [{"ingress": n, "waits_for": None} for n in self.rings]
            return {"partitions": partitions, "ingress": rings, "writer": {"fake": True}}
        elif request.op == "stop":
            if "hang-stop" in self.tricks:
                time.sleep(600)
            self.stopped = True
        return {}

    def assign(self, slot: dict[str, Any]) -> dict[str, Any]:
        """A partition; one of a topic called `broken` is offline."""
        self.slots[slot["slot"]] = slot
        if slot["topic"] == "broken":
            return {"slot": slot["slot"], "state": "offline", "reason": "the fake is broken"}
        return {"slot": slot["slot"], "state": "online", "reason": ""}

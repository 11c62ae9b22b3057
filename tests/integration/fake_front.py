"""A reader or ingress process that only binds, attaches and says so: it serves nobody.

The tests of the acceptor start it in place of `shmbroker.workers.reader` and `…ingress`. What it is
asked is noted in `<data>/front.log`. A file `<data>/fake.<name>` tells it to misbehave, one word a
line: `die-once`, `hang-stop`, `late-hello`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import zmq

from shmbroker.client.client import connect
from shmbroker.control import messages
from shmbroker.control.listening import NetworkSpec
from shmbroker.workers.lifecycle import adopt_parent


def main(spec: NetworkSpec) -> None:
    """Runs until `stop`."""
    adopt_parent(spec)
    trick_file = spec.data_dir / f"fake.{spec.name}"
    tricks = trick_file.read_text().split() if trick_file.exists() else []
    if "die-once" in tricks:
        trick_file.unlink()
        os._exit(7)
    bound = _bind(spec)
    client = connect(str(spec.runtime_dir), timeout=20)
    assert client.connection.attachment.broker_pid == spec.parent_pid
    if "late-hello" in tricks:
        time.sleep(0.7)  # this trick is the time it takes
    context = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.linger = 1000
    sock.connect(spec.workers_address)
    sock.send(messages.encode_request("hello", 0, worker=spec.name, pid=os.getpid()))
    stopped = False
    while not stopped:
        message = messages.decode(sock.recv())
        if not isinstance(message, messages.Request):
            continue
        _note(spec, message.op)
        if message.op == "stop":
            if "hang-stop" in tricks:
                time.sleep(600)
            stopped = True
        answer = {"connections": 3} if message.op == "status" else {}
        sock.send(messages.encode_reply(message.id, answer))
    client.close()
    for one in bound:
        one.close()
    sock.close()
    context.term()


def _bind(spec: NetworkSpec) -> list[socket.socket]:
    bound = []
    if spec.tcp is not None:
        host, port = spec.tcp
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        tcp = socket.socket(family)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if spec.role == "reader":
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        tcp.bind(("" if host == "*" else host, port))
        bound.append(tcp)
    if spec.unix_path is not None:
        spec.unix_path.unlink(missing_ok=True)
        unix = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        unix.bind(str(spec.unix_path))
        os.umask(before)
        bound.append(unix)
    for sock in bound:
        sock.listen()
    return bound


def _note(spec: NetworkSpec, op: str) -> None:
    line = {
        "name": spec.name, "op": op, "pid": os.getpid(), "tcp": spec.tcp,
        "unix": str(spec.unix_path) if spec.unix_path else None, "token": spec.token.decode(),
        "tls": spec.tls is not None, "curve": spec.curve is not None,
    }  # fmt: skip
    with Path(spec.data_dir / "front.log").open("a") as file:
        file.write(json.dumps(line) + "\n")

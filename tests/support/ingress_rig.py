"""An ingress process of the test's own beside a real broker; remote producers over real sockets.

The test stands in for the acceptor: it binds the workers' socket, and asks `status` and `stop`.
`Remote` is a client without threads: the sans-IO codec over a DEALER, stepped by the test.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq
from hosts import OtherHost
from ports import free_port

from shmbroker import errors
from shmbroker._core.batch import encode_values
from shmbroker.client.client import Client
from shmbroker.config import ListenSection
from shmbroker.control import messages
from shmbroker.control.listening import CurveFiles, NetworkSpec
from shmbroker.wire.native.greeting import Hello
from shmbroker.wire.native.ingress_client import IngressClient
from shmbroker.wire.native.ingress_messages import (
    Acknowledged,
    Acks,
    Heartbeat,
    HelloAgain,
    Parts,
    Produce,
    Refused,
)
from shmbroker.wire.native.state import State
from shmbroker.workers.lifecycle import run_worker

TOKEN = b"the token of this test"
PATIENCE_S = 40.0
_CLONE_NEWNET = 0x40000000


class IngressProcess:
    """One ingress process; `restart` after `kill` gives it the same addresses."""

    def __init__(
        self,
        client: Client,
        tmp_path: Path,
        *,
        tcp: bool = False,
        host: str = "127.0.0.1",
        curve: CurveFiles | None = None,
        listen: ListenSection | None = None,
    ) -> None:
        self._context = zmq.Context()
        self._acceptor = self._context.socket(zmq.ROUTER)
        self._acceptor.linger = 0
        address = f"ipc://{tmp_path}/workers"
        self._acceptor.bind(address)
        self._requests = 0
        self._worker = b""
        self.spec = NetworkSpec(
            role="ingress",
            number=0,
            instance=client.instance,
            runtime_dir=Path(client.address),
            data_dir=client.connection.attachment.data_dir,
            workers_address=address,
            tcp=(host, free_port()) if tcp else None,
            unix_path=None if tcp else tmp_path / "ingress",
            token=TOKEN,
            tls=None,
            curve=curve,
            listen=listen or ListenSection(),
            parent_pid=os.getpid(),
        )
        self.process: Any = None
        self.start()

    @property
    def address(self) -> str:
        """For DEALERs."""
        if self.spec.tcp is not None:
            return "tcp://{}:{}".format(*self.spec.tcp)
        return f"ipc://{self.spec.unix_path}"

    def start(self) -> None:
        """Returns when it has said hello."""
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(
            target=run_worker, args=("shmbroker.workers.ingress", self.spec), daemon=True
        )
        self.process.start()
        assert self._acceptor.poll(PATIENCE_S * 1000), "ingress never said hello"
        self._worker, data = self._acceptor.recv_multipart()
        hello = messages.decode(data)
        assert isinstance(hello, messages.Request)
        assert hello.op == "hello"
        assert hello.args == {"worker": "ingress-0", "pid": self.process.pid}

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        """A request of the acceptor and its answer."""
        self._requests += 1
        request = messages.encode_request(op, self._requests, **args)
        self._acceptor.send_multipart([self._worker, request])
        assert self._acceptor.poll(PATIENCE_S * 1000), f"no answer to {op}"
        reply = messages.decode(self._acceptor.recv_multipart()[1])
        assert isinstance(reply, messages.Reply)
        return dict(reply.result())

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()

    def restart(self) -> None:
        """Another one at the same address."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """In order; it must end by itself."""
        self.ask("stop", drain_s=5)
        self.process.join(PATIENCE_S)
        assert self.process.exitcode == 0

    def close(self) -> None:
        """Ends it if it still runs."""
        if self.process.is_alive():
            self.stop()
        self.process.close()
        self._context.destroy(linger=0)


def context_at(host: OtherHost) -> zmq.Context[zmq.Socket[bytes]]:
    """A context whose connections begin at another host: its I/O thread is there."""
    made: list[zmq.Context[zmq.Socket[bytes]]] = []

    def make() -> None:
        with open(f"/var/run/netns/{host.name}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        made.append(zmq.Context())
        made[0].socket(zmq.PAIR).close()  # with the first socket its threads begin

    thread = threading.Thread(target=make)  # it alone is there, and what it starts
    thread.start()
    thread.join()
    return made[0]


@dataclass
class Topic:
    """What a remote producer knows of a topic."""

    id: bytes
    writers: list[int]  # by partition

    @classmethod
    def of(cls, client: Client, name: str) -> Topic:
        """From the broker's metadata."""
        info = client.metadata.refresh(name)
        return cls(bytes.fromhex(info.id), [p.writer for p in info.partitions])


class Remote:
    """A producer without a thread. Batches of `records` values that say their number."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        producer_id: int = -1,
        *,
        records: int = 3,
        padding: int = 0,
        find_token: Callable[[], bytes] = lambda: TOKEN,
        before_connect: Callable[[zmq.Socket[bytes]], None] | None = None,
    ) -> None:
        self.codec = IngressClient()
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.reconnect_ivl = 10
        if before_connect is not None:
            before_connect(self.socket)
        self.socket.connect(address)
        self.producer_id, self.records, self.padding = producer_id, records, padding
        self.epoch, self.find_token = 0, find_token
        self.sequences: dict[tuple[bytes, int], int] = {}
        self.correlation = 0
        self.offsets: dict[int, int] = {}  # by correlation, of what was acknowledged
        self.refused: dict[int, errors.ShmbrokerError] = {}
        self.events: list[Any] = []
        self._said = 0.0
        self.greet()

    def close(self) -> None:
        """Without a word."""
        self.socket.close(0)

    def greet(self, token: bytes | None = None) -> None:
        """Says Hello."""
        self._say(self.codec.send(Hello(token or self.find_token(), "a test")))

    def _say(self, parts: Parts) -> None:
        self._said = time.monotonic()
        with contextlib.suppress(zmq.Again):  # nobody is there to take it
            self.socket.send_multipart(parts, zmq.NOBLOCK)

    def make(self, topic: Topic, partition: int = 0, acks: Acks = Acks.DURABLE) -> Produce:
        """The next batch of a partition."""
        at = topic.id, partition
        first = self.sequences.get(at, 0)
        self.sequences[at] = first + self.records
        values = [b"%d.%d" % (self.producer_id, first + n) for n in range(self.records)]
        values = [value.ljust(len(value) + self.padding) for value in values]
        numbers = {}
        if self.producer_id >= 0:
            numbers = {"producer_id": self.producer_id, "producer_epoch": self.epoch,
                       "base_sequence": first}  # fmt: skip
        self.correlation += 1
        batch = encode_values(values, 1_700_000_000_000, **numbers)
        return Produce(self.correlation, topic.id, partition, topic.writers[partition], batch, acks)

    def send(self, produce: Produce) -> None:
        """Now, or RuntimeError without credit."""
        self._say(self.codec.send(produce))

    def step(self, wait_ms: int = 20) -> None:
        """Hears what has come, and sends again what must be."""
        if self.socket.poll(wait_ms):
            while self.socket.poll(0):
                self._hear(self.codec.receive_message(self.socket.recv_multipart()))
        if time.monotonic() - self._said > 0.2:
            if self.codec.state is State.OPEN:
                self._say(self.codec.send(Heartbeat()))
            elif self.codec.state is not State.CLOSED:
                self.greet()

    def _hear(self, event: Any) -> None:
        if event is None:
            return
        self.events.append(event)
        if isinstance(event, Acknowledged):
            self.offsets.update(event.entries)
        elif isinstance(event, Refused):
            self.refused[event.correlation] = event.error
        elif isinstance(event, HelloAgain):
            self.greet()
        for parts in self.codec.resend(lambda waiting: waiting.writer):
            self._say(parts)

    def until(self, done: Callable[[], bool], what: str = "") -> None:
        """Steps until `done`."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, f"{what}: {self.events[-5:]} {self.refused}"
            self.step()

    def open(self) -> Remote:
        """Waits for Welcome and the first credit."""
        self.until(lambda: self.codec.state is State.OPEN and self.codec.credit_bytes(0) > 0)
        return self

    def produce(self, topic: Topic, partition: int = 0, acks: Acks = Acks.DURABLE) -> int:
        """Sends the next batch as soon as it may; its correlation."""
        made = self.make(topic, partition, acks)
        self.until(lambda: self.codec.may_send(made.writer), "no credit")
        self.send(made)
        return made.correlation

    def settled(self) -> None:
        """Waits until everything is answered."""
        self.until(lambda: not self.codec.unacknowledged, "unanswered")

    def raise_epoch(self) -> None:
        """As after a rejection."""
        self.epoch += 1
        self.sequences.clear()


def again(produce: Produce, correlation: int, batch: bytes | None = None) -> Produce:
    """The same batch, or another, under that correlation."""
    return replace(produce, correlation=correlation, batch=batch or produce.batch)

"""Ingress's codec on real ZeroMQ sockets: what breaks and reconnects underneath loses nothing and
doubles nothing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from ports import free_port

from shmbroker import errors
from shmbroker._core.batch import encode_values, next_batch
from shmbroker.wire.native.greeting import Hello, Welcome
from shmbroker.wire.native.ingress_client import IngressClient
from shmbroker.wire.native.ingress_messages import (
    Acknowledged,
    Heartbeat,
    HelloAgain,
    Parts,
    Produce,
    WriterCredit,
)
from shmbroker.wire.native.ingress_server import IngressServer, Stale
from shmbroker.wire.native.state import State

TOKEN, TOPIC = b"a token", bytes(16)
RECORDS = 3
BATCHES = 400
IDLE_MS = 20  # a producer that waits for answers so long asks whether its session still is


def produce(n: int) -> Produce:
    values = [b"%d" % n] * RECORDS
    batch = encode_values(values, 0, producer_id=9, producer_epoch=0, base_sequence=RECORDS * n)
    return Produce(n, TOPIC, 0, 0, batch)


class Ingress:
    """A ROUTER whose sessions live as long as it does, before a log that outlives it."""

    numbers = itertools.count(1)

    def __init__(self, address: str, log: list[int]) -> None:
        self.log = log
        self.peers: dict[bytes, IngressServer] = {}
        self.context = zmq.Context()  # of its own: only its end says that the address is free
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.bind(address)
        self.refused: list[errors.ShmbrokerError] = []

    def close(self) -> None:
        """Without a word, whatever is on its way; returns when the address is free."""
        self.context.destroy(linger=0)

    def handle(self, answers: bool = True) -> None:
        """Everything that has come; without `answers` it is appended and nobody hears of it."""
        while self.socket.poll(0):
            identity, *parts = self.socket.recv_multipart()
            peer = self.peers.setdefault(identity, IngressServer(lambda token: token == TOKEN))
            try:
                event = peer.receive_message(parts)
            except errors.ShmbrokerError as error:
                self.refused.append(error)
                self.socket.send_multipart([identity, *peer.farewell])
                del self.peers[identity]
                continue
            for reply in self.reply(peer, event):
                if answers:
                    self.socket.send_multipart([identity, *reply])

    def reply(self, peer: IngressServer, event: object) -> Iterator[Parts]:
        if isinstance(event, Hello):
            yield peer.send(Welcome(bytes(16), next(self.numbers), limit=16))
            yield peer.send(WriterCredit(0, 2000))
        elif isinstance(event, Stale):
            yield peer.send(HelloAgain())
        elif isinstance(event, Produce):
            sequence = next_batch(event.batch).base_sequence  # type: ignore[union-attr]
            if sequence not in self.log:
                assert sequence == RECORDS * len(self.log), "a gap"
                self.log.append(sequence)
            yield peer.send(Acknowledged(((event.correlation, sequence),)))
            yield peer.send(WriterCredit(0, peer.received_bytes(0) + 2000))
        elif isinstance(event, Heartbeat):
            yield peer.send(Heartbeat())


class Remote:
    """A producer over a DEALER that reconnects by itself."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.codec = IngressClient()
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.reconnect_ivl = 1
        self.socket.connect(address)
        self.socket.send_multipart(self.codec.send(Hello(TOKEN, "a test")))
        self.sent = 0

    def step(self) -> None:
        """Hears what has come, sends what may go."""
        if self.socket.poll(IDLE_MS):
            while self.socket.poll(0):
                event = self.codec.receive_message(self.socket.recv_multipart())
                if isinstance(event, HelloAgain):
                    self.greet()
                for parts in self.codec.resend(lambda waiting: waiting.writer):
                    self.socket.send_multipart(parts)
        elif self.codec.state is State.OPEN:
            self.socket.send_multipart(self.codec.send(Heartbeat()))
        else:  # the greeting or its answer was lost
            self.greet()
        while self.sent < BATCHES and self.codec.may_send(0):
            self.socket.send_multipart(self.codec.send(produce(self.sent)))
            self.sent += 1

    def greet(self) -> None:
        self.socket.send_multipart(self.codec.send(Hello(TOKEN, "a test")))


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_restarts_of_ingress_lose_nothing_and_double_nothing(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, transport: str, seed: int
) -> None:
    rng, log = random.Random(seed), list[int]()
    address = f"ipc://{tmp_path}/i" if transport == "ipc" else f"tcp://127.0.0.1:{free_port()}"
    ingress = Ingress(address, log)
    remote, restarts = Remote(context, address), 0
    try:
        while remote.sent < BATCHES or remote.codec.unacknowledged:
            remote.step()
            if rng.random() < 0.25 and restarts < 8:
                restarts += 1
                ingress.handle(answers=rng.random() < 0.5)
                ingress.close()
                ingress = Ingress(address, log)
            ingress.handle()
    finally:
        remote.socket.close(0)
        ingress.close()
    assert log == [RECORDS * n for n in range(BATCHES)]
    assert restarts > 3
    assert not ingress.refused


def test_garbage_from_one_peer_disturbs_no_other(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    log: list[int] = []
    ingress = Ingress(f"ipc://{tmp_path}/i", log)
    remote = Remote(context, f"ipc://{tmp_path}/i")
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 0
    stranger.connect(f"ipc://{tmp_path}/i")
    rng = random.Random(4)
    try:
        while remote.sent < BATCHES or remote.codec.unacknowledged:
            remote.step()
            stranger.send_multipart(
                [rng.randbytes(rng.randint(0, 60)) for _ in range(rng.choice([1, 2, 3]))]
            )
            ingress.handle()
    finally:
        stranger.close(0)
        remote.socket.close(0)
        ingress.close()
    assert log == [RECORDS * n for n in range(BATCHES)]
    assert len(ingress.refused) > 5

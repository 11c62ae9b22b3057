"""Batches of 1 KiB records through ingress, against bare ZeroMQ moving messages of the same size.

The broker's side alone: a producer elsewhere that encodes nothing, which sends the same batches of
128 KiB again and again over loopback TCP, as many on their way as its credit and session allow.
The limit is a DEALER that moves the same bytes to a ROUTER, which answers each with a few bytes and
throws it away; as many bytes are on their way. Both in the same processes' roles, in turn. What
the disk does in the same run stands beside it: durable can't be faster.
"""

from __future__ import annotations

import time
from typing import Any, Final

import zmq

from shmbroker._core.batch import encode_values
from shmbroker.control import messages
from shmbroker.control.tokens import find_token
from shmbroker.perf.bare_zmq import BareDealer, BareRouter
from shmbroker.perf.case import Bench, Case, Sizes, most_rounds, written
from shmbroker.perf.limits import RawDisk
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import against_limit
from shmbroker.perf.values import ValueSpec
from shmbroker.wire.native.greeting import Hello
from shmbroker.wire.native.ingress_client import IngressClient
from shmbroker.wire.native.ingress_messages import Acks, Produce, Refused
from shmbroker.wire.native.state import State

_CONFIG: Final = '[listen]\naddress = "tcp://127.0.0.1:0"\n'
_VALUE_BYTES: Final = 1024
_BATCH_BYTES: Final = 128 << 10  # as local producers make them under load
_RECORDS: Final = _BATCH_BYTES // (_VALUE_BYTES + 16)  # in a batch
_BATCHES: Final = 64  # different ones
_SHARE: Final = 4  # of the values of 1 KiB that other cases send
_WAIT_MS: Final = 60_000
_LEAST: Final = 0.60
_SEGMENT_BYTES: Final = 64 << 20


def _batches() -> list[bytes]:
    values = ValueSpec(_BATCHES * _RECORDS, value_bytes=_VALUE_BYTES).make()
    return [
        encode_values(values[n * _RECORDS : (n + 1) * _RECORDS], 1_700_000_000_000)
        for n in range(_BATCHES)
    ]


class BatchProducer:
    """A producer elsewhere that sends what was encoded before; and its bare counterpart."""

    def __init__(self, control: str, bare: str, topic: str) -> None:
        self._context = zmq.Context()
        self._control = self._connect(control)
        hello = self._ask("hello", min=1, max=1, name="bench", token=find_token(control))
        who = {"client": hello["client"], "secret": hello["secret"]}
        found = self._ask("metadata", topics=[topic], **who)["topics"][topic]
        self._topic_id, self._writer = bytes.fromhex(found["id"]), found["partitions"][0]["writer"]
        self._codec, self._ingress = IngressClient(), self._connect(hello["ingress"][0])
        self._ingress.send_multipart(self._codec.send(Hello(hello["data_token"].encode())))
        self._hear()
        self._batches, self._correlation = _batches(), 0
        self._bare = BareDealer(bare, self._batches)

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        sock = self._context.socket(zmq.DEALER)
        sock.connect(address)
        return sock

    def _ask(self, op: str, **args: Any) -> Any:
        self._control.send(messages.encode_request(op, 1, **args))
        assert self._control.poll(_WAIT_MS), f"no answer to {op}"
        reply = messages.decode(self._control.recv())
        assert isinstance(reply, messages.Reply)
        return reply.result()

    def _hear(self) -> None:
        """Waits for something, and takes all that has come."""
        assert self._ingress.poll(_WAIT_MS), "ingress says nothing"
        while self._ingress.poll(0):
            event = self._codec.receive_message(self._ingress.recv_multipart())
            if isinstance(event, Refused):
                raise event.error

    def produce(self, acks: int, count: int) -> float:
        """Seconds until so many batches are acknowledged."""
        codec, sock, asked = self._codec, self._ingress, Acks(acks)
        began, sent = time.perf_counter(), 0
        while sent < count or codec.unacknowledged:
            while sent < count and codec.may_send(self._writer):
                batch = self._batches[sent % _BATCHES]
                self._correlation += 1
                sent += 1
                head, body = codec.send(
                    Produce(self._correlation, self._topic_id, 0, self._writer, batch, asked)
                )
                sock.send(head, zmq.SNDMORE)
                sock.send(body, copy=False)
            self._hear()
        return time.perf_counter() - began

    def bare(self, count: int) -> float:
        """Seconds until so many messages of the same sizes are answered."""
        assert self._codec.state is State.OPEN
        return self._bare.move(count)

    def close(self) -> None:
        """Without a word."""
        self._bare.close()
        self._context.destroy(linger=0)


def _measure(bench: Bench, acks: Acks) -> Row:
    topic = f"ingress-{acks.name.lower()}"
    count = max(_BATCHES, bench.sizes.values_1k // _SHARE // _RECORDS)
    size = count * len(_batches()[0])
    sent = 0
    config = {"segment.bytes": _SEGMENT_BYTES, "retention.bytes": _SEGMENT_BYTES}
    with bench.broker(_CONFIG) as broker, broker.connect() as client, RawDisk(bench.home) as disk:
        client.create_topic(topic, config=config)
        control = client.status()["listen"]["control"][0]
        with (
            Remote(BareRouter) as router,
            Remote(BatchProducer, control, router.call("address"), topic) as producer,
        ):

            def run() -> float:
                nonlocal sent
                sent += count * _RECORDS
                took = float(producer.call("produce", int(acks), count))
                return size / took

            def bare() -> float:
                router.start("serve", count)
                took = float(producer.call("bare", count))
                router.finish()
                return size / took

            def check() -> None:
                (partition,) = client.status()["partitions"]
                if partition["log_end_offset"] != sent:
                    raise AssertionError(
                        f"{sent} records sent, {partition['log_end_offset']} there"
                    )

            found = against_limit(run, bare, bench.sizes.plan, check)
            raw = disk.write_rate(bench.sizes.raw_bytes)
    share = found.median / found.limit
    notes = [f"{count:,} batches of {_RECORDS} records a round, loopback TCP"]
    if not found.steady:
        notes.append("NO VALID ROUND: these are the invalid ones")
    return Row(
        case=f"ingress-{acks.name.lower()}",
        figure=f"batches through ingress, 1 KiB records, acks {acks.name.lower()}",
        unit="bytes/s",
        values=tuple(found.values),
        limit=Limit("bare DEALER to ROUTER, same messages", found.limit, "bytes/s"),
        ratio=share,
        target=f">= {_LEAST:.2f}" if acks is Acks.DURABLE else "",
        met=share >= _LEAST if acks is Acks.DURABLE and found.steady else None,
        thrown=tuple(found.thrown),
        note="; ".join(notes),
        more={"bare durable writes MB/s": raw / 1e6, "of those": found.median / raw},
    )


def _run(bench: Bench) -> list[Row]:
    return [_measure(bench, Acks.MEMORY), _measure(bench, Acks.DURABLE)]


def _space(sizes: Sizes) -> int:
    each = written(sizes.values_1k // _SHARE, _VALUE_BYTES)
    return most_rounds(sizes) * each + 4 * sizes.raw_bytes


CASES: Final = (
    Case("remote-ingress", "batches through ingress, against bare ZeroMQ messages", _run, _space),
)

__all__ = ["CASES"]

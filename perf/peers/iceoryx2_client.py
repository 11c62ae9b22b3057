"""iceoryx2's Python bindings (Rust inside), in a process of its own.

A topic is a publish-subscribe service of byte slices, without overflow: a publisher whose
subscriber's buffer is full retries until there is room, so nothing is lost. A sample holds as many
values as fit into 32 KiB, or one; before them stand their size and number, 4 bytes each: one loan,
one copy and one send for all of them. The subscriber polls without a pause, which is the lowest
latency there is, and costs it a core.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode

_BUFFERED: Final = 1024  # samples that a subscriber may be behind
_SAMPLE_BYTES: Final = 32 << 10
_HEAD: Final = struct.Struct("<II")  # bytes of a value, values
_SOME: Final = 64  # samples that are handed on together
_LOOK_S: Final = 0.1
_LOOKS: Final = 200  # at nothing, between two looks at the clock

Put = Callable[[bytes, int, int], None]


class Iceoryx2Client(Client):
    """A node, and a service and a publisher for each topic."""

    def __init__(self, address: tuple[str, str]) -> None:
        import iceoryx2

        self._api = iceoryx2
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        config = iceoryx2.config.default()
        config.global_cfg.root_path = iceoryx2.Path.new(address[0])
        config.global_cfg.prefix = iceoryx2.FileName.new(address[1])
        self._node = iceoryx2.NodeBuilder.new().config(config).create(iceoryx2.ServiceType.Ipc)
        self._services: dict[str, Any] = {}
        self._publishers: dict[tuple[str, int], Any] = {}

    def _service(self, topic: str) -> Any:
        if topic not in self._services:
            builder = self._node.service_builder(self._api.ServiceName.new(topic))
            self._services[topic] = (
                builder.publish_subscribe(self._api.Slice[ctypes.c_uint8])
                .enable_safe_overflow(False).history_size(0)
                .subscriber_max_buffer_size(_BUFFERED).subscriber_max_borrowed_samples(2)
                .max_publishers(2).max_subscribers(1).open_or_create()
            )  # fmt: skip
        return self._services[topic]

    def create(self, topic: str, mode: Mode) -> None:
        self._service(topic)

    def forget(self, topic: str) -> None:
        """Its publishers go, and their shared memory with them."""
        for key in [key for key in self._publishers if key[0] == topic]:
            self._publishers.pop(key).delete()
        self._services.pop(topic, None)

    def _put(self, topic: str, most_bytes: int) -> Put:
        """A function that sends values of one size, joined, in one sample."""
        key = topic, most_bytes
        if key not in self._publishers:
            retry = self._api.BackpressureStrategy.RetryUntilDelivered
            builder = self._service(topic).publisher_builder().backpressure_strategy(retry)
            builder = builder.initial_max_slice_len(_HEAD.size + most_bytes).max_loaned_samples(1)
            self._publishers[key] = builder.create()
        loan, copy, head = self._publishers[key].loan_slice_uninit, ctypes.memmove, _HEAD.pack

        def put(data: bytes, size: int, count: int) -> None:
            length = _HEAD.size + len(data)
            sample = loan(length)
            copy(sample.payload_ptr, head(size, count) + data, length)
            sample.assume_init().send()

        return put

    def send_many(self, topic: str, values: list[bytes], mode: Mode) -> None:
        size = len(values[0])
        fit = max(1, _SAMPLE_BYTES // size)
        put = self._put(topic, fit * size)
        for at in range(0, len(values), fit):
            some = values[at : at + fit]
            put(b"".join(some), size, len(some))

    def send_each(self, topic: str, values: list[bytes], mode: Mode) -> None:
        send = self.sender(topic, mode, len(values[0]))
        for value in values:
            send(value)

    def sender(self, topic: str, mode: Mode, most_bytes: int = 1 << 10) -> Callable[[bytes], None]:
        put = self._put(topic, most_bytes)

        def one(value: bytes) -> None:
            put(value, len(value), 1)

        return one

    def tail(self, topic: str, mode: Mode) -> Iterator[list[bytes]]:
        subscriber = self._service(topic).subscriber_builder().buffer_size(_BUFFERED).create()
        receive, clock, nap = subscriber.receive, time.monotonic, os.sched_yield
        try:
            yield []
            while True:
                until, sample = clock() + _LOOK_S, receive()
                while sample is None and clock() < until:
                    for _ in range(_LOOKS):
                        if (sample := receive()) is not None:
                            break
                        nap()
                found: list[bytes] = []
                for _ in range(_SOME):
                    if sample is None:
                        break
                    found += _values(sample)
                    sample.delete()
                    sample = receive() if len(found) < _SOME else None
                yield found
        finally:
            subscriber.delete()
            self._services.pop(topic, None)

    def close(self) -> None:
        for publisher in self._publishers.values():
            publisher.delete()
        self._publishers.clear()
        self._services.clear()
        del self._node


def _values(sample: Any) -> list[bytes]:
    """Copies of a sample's values."""
    at = sample.payload_ptr
    size, count = _HEAD.unpack(ctypes.string_at(at, _HEAD.size))
    data = ctypes.string_at(at + _HEAD.size, size * count)
    if count == 1:
        return [data]
    return [data[start : start + size] for start in range(0, size * count, size)]


__all__ = ["Iceoryx2Client"]

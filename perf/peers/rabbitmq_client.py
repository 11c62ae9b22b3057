"""RabbitMQ streams' fastest Python client, rstream, in a process of its own.

rstream is asyncio and Python only. Many values go as sub-entries of 100, without compression, which
RabbitMQ recommends for throughput: 730,000 a second, against 320,000 by `send_batch` (best at 100 a
call); 25, 50, 150 and 200 a sub-entry were slower or no faster. One by one is `send`: 100,000 to
150,000 a second; a `send_batch` of one 60,000. uvloop changed nothing. Not taken is rbfly, a client
in Cython: 140,000 to 190,000 a second either way, which is up to half as much again one by one and
far less in batches; it reads no sub-entries, and comes as source only.

What `send` and `send_sub_entry` gather, rstream hands to the socket twice a second, or in `close`.
A round that ends before would measure that timer, so it is asked for at once here, by the method
that its `close` calls; hence its version is fixed. Values are opaque bytes, without AMQP 1.0 around
them, which costs less on both sides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, Self, TypeVar

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.rabbitmq_sending import LOGIN, Confirms, Paced, end_the_rest

T = TypeVar("T")

_SUB_ENTRY: Final = 100  # values of one
_SUB_ENTRY_BYTES: Final = 50_000  # at most; more was no faster, and a frame holds 1 MiB
_AT_ONCE: Final = 100  # sub-entries gathered before they are sent
_CREDIT: Final = 10  # chunks on their way to a consumer; rstream's default
_LOOK_S: Final = 0.1
_QUIET: Final = 200  # empty looks, after which nothing more comes


class RabbitmqClient(Client):
    """A producer and consumers of rstream, on an event loop that runs while there is a call."""

    def __init__(self, address: int) -> None:
        self._port = address
        self._loop = asyncio.new_event_loop()
        self._producer: Any = None
        self._readings: list[_Reading] = []
        self._paced: Paced | None = None

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(what)

    async def _open(self) -> Any:
        if self._producer is None:
            from rstream import Producer

            self._producer = Producer("127.0.0.1", self._port, **LOGIN)
            await self._producer.start()
        return self._producer

    def create(self, topic: str, mode: Mode) -> None:
        async def made() -> None:
            await (await self._open()).create_stream(topic)

        self._run(made())

    def send_many(self, topic: str, values: list[bytes], mode: Mode) -> None:
        self._run(self._send_entries(topic, values))

    async def _send_entries(self, topic: str, values: list[bytes]) -> None:
        producer = await self._open()
        size = max(1, min(_SUB_ENTRY, _SUB_ENTRY_BYTES // max(1, len(values[0]))))
        starts = range(0, len(values), size)
        confirms = Confirms(len(starts))
        for number, at in enumerate(starts, 1):
            await producer.send_sub_entry(
                topic, values[at : at + size], on_publish_confirm=confirms
            )
            if number % _AT_ONCE == 0:
                await producer._publish_buffered_messages(topic)
        await producer._publish_buffered_messages(topic)
        await confirms.all()

    def send_each(self, topic: str, values: list[bytes], mode: Mode) -> None:
        self._run(self._send_each(topic, values))

    async def _send_each(self, topic: str, values: list[bytes]) -> None:
        producer = await self._open()
        confirms = Confirms(len(values))
        send = producer.send
        for value in values:
            await send(topic, value, on_publish_confirm=confirms)
        await producer._publish_buffered_messages(topic)
        await confirms.all()

    def sender(self, topic: str, mode: Mode) -> Callable[[bytes], None]:
        if self._paced is None:
            self._paced = Paced(self._port)
        return self._paced.sender(topic)

    def _reading(self, topic: str, start: Any) -> _Reading:
        reading = _Reading(self._loop, self._port, topic, start)
        self._readings.append(reading)
        return reading

    def tail(self, topic: str, mode: Mode) -> Iterator[list[bytes]]:
        from rstream import OffsetType

        with self._reading(topic, OffsetType.NEXT) as reading:
            yield []
            while True:
                yield reading.look()

    def values(self, topic: str, count: int) -> Iterator[list[bytes]]:
        """The same as `records`: rstream makes an object of each anyway."""
        return self.records(topic, count)

    def records(self, topic: str, count: int) -> Iterator[list[bytes]]:
        from rstream import OffsetType

        quiet = 0
        with self._reading(topic, OffsetType.FIRST) as reading:
            while count > 0 and quiet < _QUIET:
                values = reading.look()
                quiet = 0 if values else quiet + 1
                count -= len(values)
                yield values

    def close(self) -> None:
        if self._paced is not None:
            self._paced.close()
        for reading in self._readings:
            self._run(reading.closed())
        if self._producer is not None:
            self._run(self._producer.close())
        self._run(end_the_rest())
        self._loop.close()


class _Reading:
    """A subscription from entry to exit, and what came by it since the last look."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, topic: str, start: Any) -> None:
        self._loop, self._port, self._topic, self._start = loop, port, topic, start
        self._values: list[bytes] = []
        self._consumer: Any = None
        self._looking = False
        self._closing: asyncio.Task[None] | None = None

    def _handler(self) -> Callable[[bytes, Any], None]:
        """Of each value: rstream's callback."""
        values, wake = self._values, self._wake
        append = values.append

        def came(value: bytes, context: Any) -> None:
            context.offset  # noqa: B018  (reading it is part of what is measured)
            if not values:
                wake()
            append(value)

        return came

    def _wake(self) -> None:
        if self._looking:
            self._loop.stop()  # when the rest of this chunk has been handed over, too

    def look(self) -> list[bytes]:
        """What came since the last look, or within about 100 ms from now."""
        if not self._values:
            patience = self._loop.call_later(_LOOK_S, self._loop.stop)
            self._looking = True
            self._loop.run_forever()
            self._looking = False
            patience.cancel()
        values = self._values[:]
        self._values.clear()
        return values

    async def _subscribe(self) -> None:
        from rstream import Consumer, ConsumerOffsetSpecification

        self._consumer = Consumer("127.0.0.1", self._port, **LOGIN)
        await self._consumer.subscribe(
            self._topic, self._handler(), initial_credit=_CREDIT,
            offset_specification=ConsumerOffsetSpecification(self._start, None),
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._loop.run_until_complete(self._subscribe())
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the subscription while the loop runs for something else: rstream takes 0.6 s."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._consumer.close())

    async def closed(self) -> None:
        """Returns when it is ended, by now at the latest."""
        self.__exit__()
        assert self._closing is not None
        await self._closing


__all__ = ["RabbitmqClient"]

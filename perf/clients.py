"""What runs in spawned processes: producers and consumers, timed from within.

Each class is made by `Remote` with the address of a broker that is up already, so that its values
are made after the broker started. Times are seconds of the call in question and nothing else:
values, keys and checksums are made before or after.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import shmbroker
import shmbroker.aio
from shmbroker.perf.values import Checksum, ValueSpec, checksum_of

Address = tuple[str, str]  # instance and data directory, or where it listens and ""
_ACK_S = 120.0
_QUIET_S = 20.0
Idle = Literal["adaptive", "spin", "park"]


class _Attached:
    """A client; `cpu` pins the process."""

    def __init__(self, address: Address, cpu: int | None = None) -> None:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        # The network is taken where an address of it is given, though the broker is of this host.
        local = "://" not in address[0]
        self.client = shmbroker.connect(address[0], data_dir=address[1], timeout=60, local=local)

    def close(self) -> None:
        """Closes the client and what was made from it."""
        self.client.close()


class Sender(_Attached):
    """Sends the same values again and again, in the ways that are compared."""

    def __init__(
        self,
        address: Address,
        topic: str,
        spec: ValueSpec,
        keyed: bool = False,
        acks: str = "durable",
    ) -> None:
        super().__init__(address)
        self._address = address
        self.producer = self.client.producer(acks=acks)
        self._topic, self._spec = topic, spec
        self._values = spec.make()
        self._keys = spec.make_keys() if keyed else []

    def turn_to(self, topic: str, acks: str, compression: str | None = None) -> None:
        """From now on the values go there, with a new producer."""
        self.producer.close()
        self.producer = self.client.producer(acks=acks, compression=compression)
        self._topic = topic

    def checksum(self) -> int:
        """Of the values in the order in which they are sent."""
        return checksum_of([self._values])

    def many(self, partition: int = 0) -> float:
        """One `send_many`, until it is acknowledged."""
        began = time.perf_counter()
        self.producer.send_many(self._topic, self._values, partition=partition).result(_ACK_S)
        return time.perf_counter() - began

    def spread(self, partitions: int) -> float:
        """A `send_many` to each partition, until all are acknowledged."""
        parts = self.parts(partitions)
        send, topic = self.producer.send_many, self._topic
        began = time.perf_counter()
        receipts = [send(topic, part, partition=p) for p, part in enumerate(parts)]
        for receipt in receipts:
            receipt.result(_ACK_S)
        return time.perf_counter() - began

    def parts(self, partitions: int) -> list[list[bytes]]:
        """The values as `spread` deals them out, equally many (the rest is left out)."""
        each = len(self._values) // partitions
        return [self._values[p * each : (p + 1) * each] for p in range(partitions)]

    def part_checksums(self, partitions: int) -> list[int]:
        """Of each partition's values."""
        return [checksum_of([part]) for part in self.parts(partitions)]

    def loop(self) -> float:
        """`send` for each value, every receipt kept, until all are durable."""
        send, topic = self.producer.send, self._topic
        receipts: list[Any] = []
        keep = receipts.append
        began = time.perf_counter()
        for value in self._values:
            keep(send(topic, value))
        self.producer.flush()
        took = time.perf_counter() - began
        _all_good(receipts)
        return took

    def loop_keyed(self) -> float:
        """The same with a key each."""
        send, topic = self.producer.send, self._topic
        receipts: list[Any] = []
        keep = receipts.append
        began = time.perf_counter()
        for value, key in zip(self._values, self._keys, strict=True):
            keep(send(topic, value, key))
        self.producer.flush()
        took = time.perf_counter() - began
        _all_good(receipts)
        return took

    def loop_aio(self) -> float:
        """`await send` for each value in a task of its own loop, until all are durable."""
        return asyncio.run(self._loop_aio())

    async def _loop_aio(self) -> float:
        instance, data_dir = self._address
        receipts: list[Any] = []
        keep, topic = receipts.append, self._topic
        async with (
            shmbroker.aio.connect(instance, data_dir=data_dir, timeout=60) as client,
            client.producer() as producer,
        ):
            send = producer.send
            began = time.perf_counter()
            for value in self._values:
                keep(await send(topic, value))
            await producer.flush()
            took = time.perf_counter() - began
        _all_good(receipts)
        return took

    def loop_threads(self, threads: int) -> float:
        """The values dealt out to so many threads with one producer, until all are durable."""
        took, receipts = self._in_threads(self.producer.send, threads, self.producer.flush)
        for kept in receipts:
            _all_good(kept)
        return took

    def bare_threads(self, threads: int) -> float:
        """The same threads with a call that keeps no record: what the language takes."""
        return self._in_threads(_nothing, threads, lambda: None)[0]

    def _in_threads(
        self, send: Callable[[str, bytes], Any], threads: int, end: Callable[[], None]
    ) -> tuple[float, list[list[Any]]]:
        """Seconds until `end` has returned, and what `send` returned, by thread."""
        parts = self.parts(threads)
        receipts: list[list[Any]] = [[] for _ in parts]
        ready = threading.Barrier(threads + 1)
        topic = self._topic

        def work(part: list[bytes], keep: Callable[[Any], None]) -> None:
            ready.wait()
            for value in part:
                keep(send(topic, value))

        workers = [
            threading.Thread(target=work, args=(part, kept.append))
            for part, kept in zip(parts, receipts, strict=True)
        ]
        for worker in workers:
            worker.start()
        ready.wait()
        began = time.perf_counter()
        for worker in workers:
            worker.join()
        end()
        return time.perf_counter() - began, receipts

    def bare_loop(self) -> float:
        """The same loop with a call that keeps no record: what the language takes."""
        kept: list[Any] = []
        keep, call = kept.append, _nothing
        topic = self._topic
        began = time.perf_counter()
        for value in self._values:
            keep(call(topic, value))
        return time.perf_counter() - began


class ColumnSender(Sender):
    """Sends the same values as a list, as the rows of a 2-D array and as Arrow data."""

    def __init__(self, address: Address, topic: str, spec: ValueSpec) -> None:
        super().__init__(address, topic, spec)
        import pyarrow

        raw = memoryview(b"".join(self._values))
        self._ways: dict[str, Any] = {
            "list": self._values,
            "array": raw.cast("B", [spec.count, spec.value_bytes]),
            "arrow": pyarrow.array(self._values, pyarrow.binary()),
        }

    def timed(self, way: str) -> float:
        """One `send_many` of that form, until it is durable."""
        values = self._ways[way]
        began = time.perf_counter()
        self.producer.send_many(self._topic, values, partition=0).result(_ACK_S)
        return time.perf_counter() - began


def _nothing(topic: str, value: bytes) -> bytes:
    return value


def _all_good(receipts: list[Any]) -> None:
    for receipt in (receipts[0], receipts[len(receipts) // 2], receipts[-1]):
        receipt.result(0)


class Receiver(_Attached):
    """Reads; each call has a consumer of its own."""

    def checksum(self, topic: str, start: dict[int, int], count: int) -> int:
        """Of the next `count` values of one partition."""
        (found,) = self.checksums(topic, start, count).values()
        return found

    def checksums(self, topic: str, start: dict[int, int], count: int) -> dict[int, int]:
        """Of `count` values in all, by partition."""
        sums: dict[int, Checksum] = {partition: Checksum() for partition in start}
        for batch in self._batches(topic, start, count):
            sums[batch.partition].add(batch.values())
        return {partition: found.value for partition, found in sums.items()}

    def is_sorted_set(self, topic: str, start: dict[int, int], spec: ValueSpec) -> bool:
        """Whether the partitions together hold exactly the spec's values, each in rising order."""
        parts: dict[int, list[bytes]] = {partition: [] for partition in start}
        for batch in self._batches(topic, start, spec.count):
            parts[batch.partition] += batch.values()
        rising = all(part == sorted(part) for part in parts.values())
        whole = sorted(value for part in parts.values() for value in part)
        return rising and checksum_of([whole]) == checksum_of([spec.make()])

    def is_permutation(self, topic: str, start: dict[int, int], spec: ValueSpec) -> bool:
        """Whether the partitions together hold exactly the spec's values, in any order."""
        found = [value for batch in self._batches(topic, start, spec.count)
                 for value in batch.values()]  # fmt: skip
        return checksum_of([sorted(found)]) == checksum_of([sorted(spec.make())])

    def read(
        self, topic: str, count: int, how: Literal["values", "offset_value", "all", "arrow"]
    ) -> tuple[float, int]:
        """Seconds to read `count` records from the earliest, and how many came."""
        take = {
            "values": _values,
            "offset_value": _offset_value,
            "all": _every_field,
            "arrow": _arrow,
        }[how]
        with self.client.consumer(topic, start="earliest") as consumer:
            got = 0
            began = time.perf_counter()
            for batch in consumer.batches(timeout=_QUIET_S):
                got += take(batch)
                if got >= count:
                    break
            return time.perf_counter() - began, got

    def convert(self, topic: str, count: int, ways: list[str]) -> dict[str, float]:
        """Seconds that these methods of a batch take for about `count` records, each batch as it
        comes, by every way in turn; what is made of one is dropped before the next."""
        took, got = dict.fromkeys(ways, 0.0), 0
        for n, batch in enumerate(self._batches(topic, {0: 0}, count, exact=False)):
            for k in range(len(ways)):
                way = ways[(n + k) % len(ways)]  # who comes first finds the batch less warm
                name, *arguments = way.split()
                call = getattr(batch, name)
                began = time.perf_counter()
                call(*arguments)
                took[way] += time.perf_counter() - began
            got += len(batch)
        return {way: seconds * count / got for way, seconds in took.items()}

    def prefixes(self, topic: str, partitions: int, counts: dict[int, int]) -> Counter[int]:
        """How many values each partition has; raises if they are not 0, 1, 2 … of `Pressure`."""
        seen: Counter[int] = Counter()
        with self.client.consumer(topic, start="earliest") as consumer:
            left = sum(max(0, end) for end in consumer.end_offsets().values())
            for batch in consumer.batches(timeout=_QUIET_S):
                part = batch.partition
                for value in batch.values():
                    if value is None or value[:20] != b"%08d%012d" % (part, seen[part]):
                        raise AssertionError(f"{topic}-{part}: foreign value at {seen[part]}")
                    seen[part] += 1
                left -= len(batch)
                if left <= 0:
                    break
        short = {p: n for p, n in counts.items() if seen[p] < n}
        if short:
            raise AssertionError(f"acknowledged records are gone: {short}")
        return seen

    def _batches(self, topic: str, start: dict[int, int], count: int, exact: bool = True) -> Any:
        got = 0
        partitions = sorted(start)
        with self.client.consumer(topic, partitions=partitions, start=start) as consumer:
            for batch in consumer.batches(timeout=_QUIET_S):
                yield batch
                got += len(batch)
                if got >= count:
                    break
        if got != count and (exact or got < count):
            raise AssertionError(f"{topic}: {count} records went in, {got} came out")


def _values(batch: Any) -> int:
    return len(batch.values())


def _arrow(batch: Any) -> int:
    return len(batch.arrow())


def _offset_value(batch: Any) -> int:
    n = 0
    for record in batch.records():
        record.offset, record.value  # noqa: B018  (reading it is what is measured)
        n += 1
    return n


def _every_field(batch: Any) -> int:
    n = 0
    for r in batch.records():
        r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers  # noqa: B018
        n += 1
    return n


class RoundTrips(_Attached):
    """One record at a time, and when it is back or durable."""

    def __init__(
        self, address: Address, topic: str, cpu: int | None = None, acks: str = "durable"
    ) -> None:
        super().__init__(address, cpu)
        self.producer = self.client.producer(acks=acks)
        self._topic = topic

    def durable(self, count: int) -> list[float]:
        """Microseconds from each `send` to its durable receipt."""
        values = ValueSpec(count).make()
        send, topic, took = self.producer.send, self._topic, []
        for value in values:
            began = time.perf_counter_ns()
            send(topic, value, partition=0).result(_ACK_S)
            took.append((time.perf_counter_ns() - began) / 1e3)
        return took

    def back(self, count: int, idle: Idle) -> list[float]:
        """Microseconds from each `send` to the same value out of a consumer of this process."""
        values = ValueSpec(count).make()
        send, topic, took = self.producer.send, self._topic, []
        got: list[bytes] = []
        with self.client.consumer(topic, isolation="appended", idle=idle) as consumer:
            poll = consumer.poll
            for value in values:
                began = time.perf_counter_ns()
                send(topic, value, partition=0)
                record = poll(_ACK_S)
                took.append((time.perf_counter_ns() - began) / 1e3)
                got.append((record and record.value) or b"")
        if checksum_of([values]) != checksum_of([got]):
            raise AssertionError("what came back is not what was sent")
        return took


class Pressure(_Attached):
    """Load until it is killed: numbered values to every partition, as fast as they are taken."""

    def __init__(self, address: Address, topic: str, partitions: int, chunk: int) -> None:
        super().__init__(address)
        self.producer = self.client.producer()
        self._topic, self._partitions, self._chunk = topic, partitions, chunk
        self._sent = [0] * partitions

    def lap(self) -> dict[int, int]:
        """A chunk to each partition, durable; what is acknowledged by now, by partition."""
        receipts = []
        for p in range(self._partitions):
            first = self._sent[p]
            values = [b"%08d%012d%080d" % (p, n, n) for n in range(first, first + self._chunk)]
            receipts.append(self.producer.send_many(self._topic, values, partition=p))
            self._sent[p] += self._chunk
        for receipt in receipts:
            receipt.result(_ACK_S)
        return dict(enumerate(self._sent))


__all__ = ["Address", "ColumnSender", "Idle", "Pressure", "Receiver", "RoundTrips", "Sender"]

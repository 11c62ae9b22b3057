"""Feeds and inlets under the real PartitionReader: what a stream becomes, and what is refused."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from shmbroker._core import batch, feed, reader, shm
from shmbroker.client.remote.streams import Bell
from shmbroker.wire.native.limits import SUBSCRIPTIONS
from shmbroker.wire.native.stream_frames import Batches, Closing, Ends, Heartbeat, encode

MOST = 1 << 20
NUMBER = 7


class Rig:
    """One feed that an inlet fills out of a socket pair, and its reader."""

    def __init__(self, offset: int = 0, most: int = MOST) -> None:
        self.bell = Bell()
        fd = os.memfd_create("park")
        os.ftruncate(fd, shm.PARK_BYTES)
        self.park = reader.Mapping("park", fd, writable=True)
        os.close(fd)
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.offset, self.sent, self.limit = offset, 0, 0
        self.inlet = feed.Inlet()
        self.feed = feed.Feed(self.park, 3, offset, -1, most, self.bell)
        self.reader = self.reads(offset)
        self.feed.begin()
        self.grant()
        self.inlet.list(NUMBER, self.feed)

    def reads(self, offset: int) -> reader.PartitionReader:
        made = reader.PartitionReader(
            "t",
            0,
            writer=3,
            slot=0,
            slot_epoch=1,
            table=self.feed.table,
            open_ring=self.feed.open_ring,
            position=offset,
        )
        self.feed.feeds(made)
        return made

    def grant(self, spare: int = MOST) -> None:
        self.limit = self.feed.grant(spare)

    def batch(self, *values: bytes, **options: int) -> bytes:
        raw = batch.encode_values(list(values), 1000, base_offset=self.offset, **options)
        self.offset += len(values)
        return raw

    def frame(self, *batches: bytes, number: int = NUMBER) -> bytes:
        return encode(Batches(number, Ends(0, self.offset, self.offset), b"".join(batches)))

    def gets(self, data: bytes) -> int:
        """What the inlet says after `data`, given a socket buffer at a time."""
        event, at = feed.MORE, 0
        while at < len(data) and event == feed.MORE:
            at += self.far.send(data[at : at + (64 << 10)])
            event = self.inlet.receive(self.near.fileno())
        return event

    def reads_all(self, most: int = 1 << 18) -> list[bytes | None]:
        found: list[bytes | None] = []
        while (got := self.reader.fetch(most)) is not None:
            found += got.values()
        return found

    def close(self) -> None:
        self.near.close()
        self.far.close()
        self.reader.close()
        del self.reader, self.inlet, self.feed  # the ring's descriptor goes with them


@pytest.fixture
def rig() -> Iterator[Rig]:
    with contextlib.closing(Rig()) as made:
        yield made


def values(n: int, size: int) -> list[bytes]:
    return [b"%0*d" % (size, i) for i in range(n)]


def test_as_many_subscriptions_fit_as_a_connection_may_have() -> None:
    assert feed.SUBSCRIPTIONS == SUBSCRIPTIONS


def test_a_feed_without_batches_takes_no_ring_and_has_no_records(rig: Rig) -> None:
    assert rig.feed.capacity == 0
    assert rig.reader.fetch(1 << 20) is None
    assert (rig.reader.end, rig.reader.state, rig.reader.bound) == (0, "online", True)


def test_what_comes_is_read_as_from_a_brokers_ring(rig: Rig) -> None:
    assert rig.gets(rig.frame(rig.batch(b"a", b"b"), rig.batch(b"c", leader_epoch=4))) == feed.MORE
    got, more = rig.reader.fetch(1 << 20), rig.reader.fetch(1 << 20)  # one leader epoch each
    assert got is not None
    assert more is not None
    assert (got.values(), got.base_offset, got.next_offset) == ([b"a", b"b"], 0, 2)
    assert (more.values(), more.base_offset, more.next_offset) == ([b"c"], 2, 3)
    assert (got.leader_epoch, more.leader_epoch) == (0, 4)
    assert (rig.reader.position, rig.reader.leader_epoch, rig.feed.leader_epoch) == (3, 4, 4)


def test_batches_count_when_their_frame_is_whole_however_it_arrives(rig: Rig) -> None:
    first, second = rig.frame(rig.batch(b"a"), rig.batch(b"b")), rig.frame(rig.batch(b"c"))
    ends = []
    for n in range(len(first + second)):
        assert rig.gets((first + second)[n : n + 1]) == feed.MORE
        ends.append(rig.reader.end)
    assert ends == [0] * (len(first) - 1) + [2] * len(second) + [3]
    assert rig.reads_all() == [b"a", b"b", b"c"]


def test_the_ring_goes_around_many_times_and_gives_everything_once(rig: Rig) -> None:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    wanted, found, sent = [], [], 0
    for _ in range(400):
        one = [chance.randbytes(chance.randrange(1, 3000)) for _ in range(chance.randrange(1, 12))]
        raw = rig.batch(*one)
        while sent >= rig.limit:
            found += rig.reads_all(chance.choice((1, 5000, 1 << 18)))
            rig.grant()
        sent += len(raw)
        assert rig.gets(rig.frame(raw)) == feed.MORE, f"seed {seed}"
        wanted += one
    found += rig.reads_all()
    assert found == wanted, f"seed {seed}"
    assert rig.feed.capacity <= MOST


def test_nothing_is_overwritten_before_it_was_taken(rig: Rig) -> None:
    sent = 0
    while sent < rig.limit:
        raw = rig.batch(*values(10, 1000))
        assert rig.gets(rig.frame(raw)) == feed.MORE
        sent += len(raw)
        rig.grant()
    assert rig.feed.capacity == feed.LEAST_BYTES  # a reader that takes nothing gets no more
    assert rig.feed.untaken == sent <= feed.LEAST_BYTES
    assert rig.reads_all(1) == values(10, 1000) * (rig.offset // 10)


def test_what_was_fetched_last_stays_for_who_gives_it_back(rig: Rig) -> None:
    assert rig.gets(rig.frame(rig.batch(*values(100, 100)))) == feed.MORE
    got = rig.reader.fetch(1)
    assert got is not None
    rig.reader.seek(40)
    rig.grant()
    again = rig.reader.fetch(1)
    assert again is not None
    assert again.values() == values(100, 100)[40:]


def test_a_reader_rings_when_a_quarter_is_taken_and_grows_its_ring_if_it_waited(rig: Rig) -> None:
    capacities = []
    sent = 0
    for _ in range(200):
        while sent < rig.limit:
            raw = rig.batch(*values(20, 1000))
            assert rig.gets(rig.frame(raw)) == feed.MORE
            sent += len(raw)
        assert not rig.feed.rang()
        rig.reads_all()
        assert os.eventfd_read(rig.bell.fileno())
        assert rig.feed.rang()
        rig.grant()
        capacities.append(rig.feed.capacity)
    assert capacities == sorted(capacities)
    assert capacities[-1] == MOST


def test_a_batch_larger_than_the_ring_makes_it_grow_and_loses_nothing(rig: Rig) -> None:
    first, large = values(5, 100), [os.urandom(3 << 20)]
    rig.gets(rig.frame(rig.batch(*first)))
    assert rig.gets(rig.frame(rig.batch(*large))) == feed.MORE
    assert rig.reads_all() == first + large
    assert rig.feed.capacity == 4 << 20


def test_readers_follow_a_ring_that_grows_under_them(rig: Rig) -> None:
    rig.gets(rig.frame(rig.batch(*values(10, 1000)), rig.batch(*values(10, 1000))))
    got = rig.reader.fetch(1)
    assert got is not None
    rig.gets(rig.frame(rig.batch(os.urandom(1 << 20))))
    assert rig.reader.fetch(1) is not None
    last = rig.reader.fetch(1)
    assert last is not None
    assert len(last.values()[0] or b"") == 1 << 20


@pytest.mark.parametrize("what", ["crc", "length", "offset", "repeat", "credit"])
def test_a_frame_with_a_fault_ends_its_feed_behind_what_is_good(rig: Rig, what: str) -> None:
    good, bad = rig.batch(b"good"), bytearray(rig.batch(b"bad"))
    if what == "crc":
        bad[-1] ^= 1
    elif what == "length":
        struct.pack_into(">i", bad, 8, len(bad))
    elif what == "offset":
        struct.pack_into(">q", bad, 0, 0)
    elif what == "repeat":
        bad = bytearray(good)
    else:
        bad += rig.batch(*[bytes(1000)] * 300)
    assert rig.gets(rig.frame(good, bytes(bad))) == feed.FAULT
    assert rig.inlet.number == NUMBER
    assert feed.fault_text(rig.inlet.fault)
    assert rig.reads_all() == ([] if what == "credit" else [b"good"])
    assert rig.gets(rig.frame(rig.batch(b"later"))) == feed.MORE  # dropped until it is unlisted
    assert b"later" not in rig.reads_all()


def test_more_than_was_granted_is_a_fault(rig: Rig) -> None:
    sent = 0
    while sent < rig.limit:
        raw = rig.batch(*values(20, 1000))
        assert rig.gets(rig.frame(raw)) == feed.MORE
        sent += len(raw)
    assert rig.gets(rig.frame(rig.batch(b"one too many"))) == feed.FAULT


@pytest.mark.parametrize(
    "data",
    [
        encode(Batches(NUMBER + 1, Ends(0, 1, 1), bytes(61))),  # nobody subscribed
        struct.pack(">B3sII", 17, bytes(3), NUMBER, 24),  # no batches
        struct.pack(">B3sII", 17, bytes(3), NUMBER, (32 << 20) + 25),
        struct.pack(">B3sII", 17, bytes(3), 1 << 31, 1000),
        struct.pack(">B3sII", 17, b"\0\0\1", NUMBER, 1000),
        struct.pack(">B3sII", 19, bytes(3), NUMBER, 1 << 20),
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100),
    ],
)
def test_what_is_no_frame_ends_the_connection(rig: Rig, data: bytes) -> None:
    assert rig.gets(data + bytes(64)) == feed.RUBBISH


def test_other_frames_come_out_in_their_place(rig: Rig) -> None:
    beat, closing = encode(Heartbeat()), encode(Closing())
    assert rig.gets(rig.frame(rig.batch(b"a")) + beat + closing + rig.frame(rig.batch(b"b"))) == (
        feed.FRAME
    )
    assert rig.reads_all() == [b"a"]
    assert rig.inlet.frame() == beat
    assert rig.inlet.receive(rig.near.fileno()) == feed.FRAME
    assert rig.inlet.frame() == closing
    assert rig.inlet.receive(rig.near.fileno()) == feed.MORE
    assert rig.reads_all() == [b"b"]


def test_what_comes_for_a_subscription_that_is_ending_is_dropped(rig: Rig) -> None:
    whole = rig.frame(rig.batch(os.urandom(100_000)))
    assert rig.gets(whole[:50_000]) == feed.MORE
    rig.inlet.drop(NUMBER, False)
    assert rig.gets(whole[50_000:] + rig.frame(rig.batch(b"more"))) == feed.MORE
    assert rig.reads_all() == []
    rig.inlet.drop(NUMBER, True)
    assert rig.gets(rig.frame(rig.batch(b"more"))) == feed.RUBBISH


def test_half_a_frame_is_forgotten_when_the_subscription_begins_anew(rig: Rig) -> None:
    rig.gets(rig.frame(rig.batch(b"a")))
    lost = rig.frame(rig.batch(b"b", b"c"))
    rig.gets(lost[:-1])
    rig.far.close()
    assert rig.inlet.receive(rig.near.fileno()) == feed.END
    rig.near.close()
    rig.near, rig.far = socket.socketpair()
    rig.near.setblocking(False)
    rig.inlet = feed.Inlet()
    rig.offset = rig.feed.next_offset
    assert rig.offset == 1
    rig.feed.begin()
    rig.grant()
    rig.inlet.list(NUMBER, rig.feed)
    rig.gets(rig.frame(rig.batch(b"b", b"c")))
    assert rig.reads_all() == [b"a", b"b", b"c"]


def test_a_gap_is_a_fault_and_no_record_behind_it_is_handed_out(rig: Rig) -> None:
    rig.gets(rig.frame(rig.batch(b"a")))
    rig.offset = 10
    assert rig.gets(rig.frame(rig.batch(b"b"))) == feed.FAULT
    assert feed.fault_text(rig.inlet.fault) == "not the offset that comes next"
    assert rig.reads_all() == [b"a"]
    assert (rig.feed.has(0), rig.feed.has(1), rig.feed.has(10)) == (True, False, False)


def test_wait_receives_for_all_connections_and_returns_for_the_bell() -> None:
    with contextlib.closing(Rig()) as one, contextlib.closing(Rig()) as other:
        for r in (one, other):
            r.far.send(r.frame(r.batch(b"a")))
        watched = [(r.near.fileno(), r.inlet, False) for r in (one, other)]
        soon = reader.monotonic_ns() + 50_000_000
        assert feed.wait(one.bell.fileno(), watched, soon) == [0, 0, 0] or one.reads_all() == [b"a"]
        assert other.reads_all() == [b"a"]
        one.bell.ring()
        found = feed.wait(one.bell.fileno(), watched, reader.monotonic_ns() + 10_000_000_000)
        assert found[0] >> 8
        other.far.close()
        found = feed.wait(other.bell.fileno(), watched, reader.monotonic_ns() + 10_000_000_000)
        assert found[2] & 0xFF == feed.END


def test_a_waiting_reader_is_woken_by_what_comes(rig: Rig) -> None:
    class Stream(reader.RecordStream):
        def __init__(self) -> None:
            self._all = self._readers = [rig.reader]
            self._park, self._most, self._spin_ns = rig.park.address, 1 << 18, 0
            self._epoch, self._seen = reader.EpochWord(), 0

    stream = Stream()
    timer = threading.Timer(0.05, lambda: rig.gets(rig.frame(rig.batch(b"woken"))))
    timer.start()
    got = stream._next_batch(reader.deadline(10.0))
    timer.join()
    assert got is not None
    assert got.values() == [b"woken"]


def test_a_feed_that_is_closed_ends_waits_but_gives_what_it_has(rig: Rig) -> None:
    rig.gets(rig.frame(rig.batch(b"a")))
    rig.feed.close()
    assert rig.reader.state == "closed"
    assert rig.reads_all() == [b"a"]


def test_an_inlet_survives_any_bytes(rig: Rig) -> None:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    base = rig.frame(rig.batch(b"a", b"b"))
    for _ in range(2000):
        data = bytearray(base * chance.randrange(1, 4))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.closing(Rig()) as other:
            event = other.gets(bytes(data))
            assert event in (feed.MORE, feed.FRAME, feed.FAULT, feed.RUBBISH), f"seed {seed}"
            other.reads_all()


def fill(rig: Rig, stop: Callable[[], bool]) -> None:
    """Sends for ever what there is credit for; a thread."""
    sent = 0
    while not stop():
        if rig.feed.rang():
            rig.grant()
        if sent < rig.limit:
            raw = rig.batch(*[b"%08d" % (rig.offset + n) for n in range(50)])
            sent += len(raw)
            assert rig.gets(rig.frame(raw)) == feed.MORE


def test_reading_while_the_ring_fills_and_grows_gives_everything_in_order(rig: Rig) -> None:
    done = threading.Event()
    thread = threading.Thread(target=fill, args=(rig, done.is_set))
    thread.start()
    try:
        expected = 0
        while expected < 200_000:
            got = rig.reader.fetch(1 << 15)
            if got is not None:
                assert got.values() == [b"%08d" % n for n in range(expected, expected + len(got))]
                expected += len(got)
    finally:
        done.set()
        thread.join()

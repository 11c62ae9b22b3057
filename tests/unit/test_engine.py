"""The sequencer and the appender, frame by frame, without a broker around them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_rig import Rig, batch

from shmbroker import errors
from shmbroker._core.batch import decode_values, next_batch, validate
from shmbroker._core.engine import WANT_FAILED, WANT_SEAL


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as made:
        yield made


def stored(rig: Rig, base_offset: int = 0) -> list[bytes]:
    """The values in a segment file, every batch verified, up to the zeros."""
    data = (rig.directory / f"{base_offset:020}.log").read_bytes()
    at, values = 0, []
    while at < len(data) and data[at + 16] == 2:
        info = next_batch(data, at)
        assert info is not None
        end = at + info.size
        validate(data[at:end], from_log=True)
        values += decode_values(data[at:end])
        at = end
    assert not any(data[at:]), "behind the last batch there are zeros"
    return values


def test_a_frame_is_appended_acknowledged_and_durable(rig: Rig) -> None:
    engine = rig.engine()
    part = rig.partition(engine)
    client = rig.client()
    client.attach(engine)
    rig.start(engine)
    receipt = client.wait(client.send(batch([b"one", b"two"])))
    assert (receipt["error"], receipt["base_offset"]) == (0, 0)
    receipt = client.wait(client.send(batch([b"three"])))
    assert (receipt["error"], receipt["base_offset"]) == (0, 2)
    assert part.wait_drained(40)
    assert stored(rig) == [b"one", b"two", b"three"]
    segment, nbytes, offset = part.durable()
    assert (segment, offset) == (0, 3)
    assert nbytes == len(batch([b"one", b"two"]) + batch([b"three"]))
    assert client.tail() == client.head


def test_frames_of_several_rings_and_partitions_keep_their_order(rig: Rig) -> None:
    engine = rig.engine()
    for slot in range(3):
        os.makedirs(rig.directory / str(slot))
        fd = os.open(rig.directory / str(slot) / "f", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(fd, 0, 1 << 20)
        rig.files.append(fd)
        rig.partition(engine, slot, fd=fd)
    clients = [rig.client(n) for n in (1, 2)]
    for client in clients:
        client.attach(engine)
    rig.start(engine)
    for n in range(300):
        client = clients[n % 2]
        client.send(batch([b"%d" % n]), slot=n % 3)
        rig.until(lambda c=client: c.head - c.tail() < c.capacity - 4096)
    for client in clients:
        client.wait(client.seq - 1)
    for slot in range(3):
        assert engine.partition(slot).wait_drained(40)
        data = (rig.directory / str(slot) / "f").read_bytes()
        at, values = 0, []
        while data[at + 16] == 2:
            info = next_batch(data, at)
            values.append(int(decode_values(data[at : at + info.size])[0]))
            at += info.size
        assert sorted(values) == list(range(slot, 300, 3))
        for parity in (0, 1):
            mine = [v for v in values if v % 2 == parity]
            assert mine == sorted(mine)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda b: b[:30] + bytes([b[30] ^ 1]) + b[31:], 2),
        (lambda b: b[:16] + b"\x01" + b[17:], 87),
        (lambda b: b[:40], 87),
        (lambda b: b + b"\0" * 8, 87),
        (lambda b: batch([b"bad"], producer_id=1, producer_epoch=0, transactional=True), 1003),
    ],
    ids=["crc", "magic", "short", "longer than it says", "transactional"],
)
def test_a_bad_batch_gets_an_error_and_the_next_one_is_appended(rig: Rig, spoil, code) -> None:
    engine = rig.engine()
    part = rig.partition(engine)
    client = rig.client()
    client.attach(engine)
    rig.start(engine)
    assert client.wait(client.send(spoil(batch([b"bad"]))))["error"] == code
    assert client.wait(client.send(batch([b"good"])))["base_offset"] == 0
    assert part.wait_drained(40)
    assert stored(rig) == [b"good"]


def test_a_frame_for_a_partition_that_is_not_there_is_rejected(rig: Rig) -> None:
    engine = rig.engine()
    rig.partition(engine)
    client = rig.client()
    client.attach(engine)
    rig.start(engine)
    assert client.wait(client.send(batch([b"x"]), slot=5))["error"] == 3
    assert client.wait(client.send(batch([b"x"]), slot=4_000_000_000))["error"] == 3
    assert client.wait(client.send(batch([b"x"]), epoch=2))["error"] == 3
    assert client.wait(client.send(batch([b"x"])))["error"] == 0


def test_rubbish_in_a_ring_detaches_it_and_nobody_else(rig: Rig) -> None:
    engine = rig.engine()
    rig.partition(engine)
    bad = [rig.client(n) for n in (1, 2, 3)]
    good = rig.client(4)
    sources = [client.attach(engine) for client in (*bad, good)]
    rig.start(engine)
    bad[0].send(batch([b"x"]), length=1 << 30)
    bad[1].send(batch([b"x"]), seq=7)
    bad[2].head = 1 << 40
    bad[2].publish()
    for client, source in zip(bad, sources, strict=False):
        rig.until(client.detached)
        assert client.detached() == 1004
        assert source.detached
    assert good.wait(good.send(batch([b"fine"])))["error"] == 0


def test_a_duplicate_gets_its_first_offset_and_is_not_appended_again(rig: Rig) -> None:
    engine = rig.engine()
    part = rig.partition(engine)
    client = rig.client()
    client.attach(engine)
    rig.start(engine)
    how = {"producer_id": 9, "producer_epoch": 0}
    assert client.wait(client.send(batch([b"a", b"b"], base_sequence=0, **how)))["base_offset"] == 0
    assert client.wait(client.send(batch([b"c"], base_sequence=2, **how)))["base_offset"] == 2
    assert client.wait(client.send(batch([b"a", b"b"], base_sequence=0, **how)))["base_offset"] == 0
    assert client.wait(client.send(batch([b"e"], base_sequence=7, **how)))["error"] == 45
    assert client.wait(client.send(batch([b"d"], base_sequence=3, **how)))["base_offset"] == 3
    assert part.wait_drained(40)
    assert stored(rig) == [b"a", b"b", b"c", b"d"]


def test_a_roll_begins_the_next_file_and_loses_nothing(rig: Rig) -> None:
    engine = rig.engine()
    part = rig.partition(engine, segment_bytes=64 << 10)
    client = rig.client()
    client.attach(engine)
    rig.start(engine)
    part.set_next(8 << 20)
    payload = [bytes([n]) * 1000 for n in range(100)]
    seals = 0
    for n, value in enumerate(payload):
        client.send(batch([value]))
        while client.receipts() <= n:
            for _slot, bits in rig.housekeep(engine):
                if bits & WANT_SEAL:
                    seals += 1
                    part.set_next(8 << 20)
    assert part.wait_drained(40)
    first = stored(rig, 0)
    base, _ = part.append_segment
    assert base == len(first) > 50
    assert first + stored(rig, base) == payload


def test_a_full_ring_blocks_until_the_disk_has_caught_up(rig: Rig) -> None:
    engine = rig.engine()
    part = rig.partition(engine, capacity=64 << 10)
    client = rig.client()
    client.attach(engine)
    rig.start(engine, flushers=0)
    for _ in range(40):
        client.send(batch([b"z" * 5000]), acks=1)
    rig.until(lambda: rig.view.slot(0)["blocked_why"] == "ring_full")
    assert client.receipts() < 40
    import threading

    flusher = threading.Thread(target=engine.run_flusher)
    flusher.start()
    rig.threads.append(flusher)
    client.wait(39)
    assert part.wait_drained(40)
    assert stored(rig) == [b"z" * 5000] * 40


def test_a_failed_write_takes_the_partition_offline_for_good(rig: Rig, tmp_path: Path) -> None:
    engine = rig.engine()
    (tmp_path / "ro").write_bytes(b"")
    fd = os.open(tmp_path / "ro", os.O_RDONLY)
    rig.files.append(fd)
    part = rig.partition(engine, fd=fd)
    client = rig.client()
    client.attach(engine)
    rig.start(engine)
    assert client.wait(client.send(batch([b"x"])))["error"] == 0
    rig.until(lambda: part.state == "offline")
    assert client.wait(client.send(batch([b"y"])))["error"] == 56
    assert any(bits & WANT_FAILED for _part, bits in engine.take_wants())
    assert part.failed_errno == 9


def test_a_new_writer_takes_the_ring_over_with_what_was_not_durable(rig: Rig) -> None:
    first = rig.engine()
    rig.partition(first)
    client = rig.client()
    client.attach(first)
    rig.start(first, flushers=0)
    for n in range(5):
        client.wait(client.send(batch([b"%d" % n]), acks=1))
    rig.stop(first)
    client.send(batch([b"5"]))
    second = rig.engine()
    part = rig.partition(second, adopt=True, fd=rig.files[0])
    client.attach(second)
    rig.start(second)
    assert client.wait(5)["base_offset"] == 5
    assert part.wait_drained(40)
    assert stored(rig) == [b"%d" % n for n in range(6)]
    assert client.wait(client.send(batch([b"6"])))["base_offset"] == 6


def test_a_rejection_takes_the_later_frames_of_its_chain_with_it(rig: Rig) -> None:
    engine = rig.engine()
    part = rig.partition(engine)
    client = rig.client(slots=8)
    client.attach(engine)
    good, bad = batch([b"good"]), batch([b"bad"])[:40]
    sent = [(good, 1), (bad, 1), (good, 2), (good, 1), (good, 0), (good, 1), (bad, 2), (good, 2)]
    for payload, chain in sent:
        client.send(payload, chain=chain)
    rig.start(engine)
    client.wait(len(sent) - 1)
    errors_seen = [client.receipt(n)["error"] for n in range(len(sent))]
    assert errors_seen == [0, 87, 0, 1011, 0, 1011, 87, 1011]
    for n in range(20):  # the receipts that broke them have been overwritten, the numbers are free
        assert client.wait(client.send(good, chain=3))["error"] == 0, n
    assert part.wait_drained(40)
    assert stored(rig) == [b"good"] * 23


def test_a_new_writer_remembers_what_the_old_one_rejected(rig: Rig) -> None:
    first = rig.engine()
    rig.partition(first)
    client = rig.client()
    client.attach(first)
    rig.start(first, flushers=0)
    assert client.wait(client.send(batch([b"bad"])[:40], chain=7))["error"] == 87
    assert client.wait(client.send(batch([b"another's"]), chain=8))["error"] == 0
    rig.stop(first)
    client.send(batch([b"later"]), chain=7)
    second = rig.engine()
    part = rig.partition(second, adopt=True, fd=rig.files[0])
    client.attach(second)
    rig.start(second)
    assert client.wait(2)["error"] == 1011
    assert part.wait_drained(40)
    assert stored(rig) == [b"another's"]


def test_the_engines_error_codes_are_those_of_the_errors_module() -> None:
    header = Path(__file__).parents[2] / "shmbroker/_core/sequencer.h"
    codes = dict(re.findall(r"SHMB_E_(\w+) = (\d+)", header.read_text()))
    wanted = {
        "CORRUPT": errors.CorruptBatch,
        "UNKNOWN_PARTITION": errors.UnknownTopic,
        "TOO_LARGE": errors.RecordTooLarge,
        "OUT_OF_ORDER": errors.OutOfOrderSequence,
        "INVALID_EPOCH": errors.InvalidProducerEpoch,
        "STORAGE": errors.PartitionOffline,
        "INVALID_RECORD": errors.InvalidRecord,
        "NOT_SUPPORTED": errors.NotSupported,
        "EARLIER": errors.EarlierRejected,
        "READ_ONLY": errors.PartitionReadOnly,
        "BAD_FRAME": errors.Detached,
    }
    assert {name: int(code) for name, code in codes.items()} == {
        name: error.kafka_code for name, error in wanted.items()
    }

"""What bad input gets from a real broker: a clear error, nothing lost, and the broker goes on.

What needs no broker is elsewhere: frames in tests/unit/test_engine.py; configuration in
test_config.py and test_acceptor.py; two brokers, newer data directories and a small /dev/shm in
test_datadir.py and test_acceptor_cli.py.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from ingress_rig import IngressProcess, Remote, Topic
from raw_client import RawClient
from waiting import eventually
from writer_rig import batches_of

from shmbroker import errors
from shmbroker._core import shm
from shmbroker._core.scan import crc32c
from shmbroker.config import ListenSection, shm_prefix

Broker = Any
PROGRAM = "shmbroker.cli.main"


@pytest.fixture
def broker_config() -> str:
    return "[broker]\nwriters = 1\n"


def rings(broker: Broker) -> list[str]:
    """The ingress rings and receipts in shared memory."""
    identity = json.loads((broker.places.data_dir / "datadir.json").read_text())
    prefix = shm_prefix(identity["data_dir_id"])
    names = [str(name).rpartition("-")[2] for name in shm.list_prefix(prefix)]
    return [name for name in names if name[0] in "ir"]


def on_disk(broker: Broker, topic: str = "t") -> list[bytes]:
    """Every value of partition 0, every batch verified; the broker is down."""
    return [v for _, _, vs in batches_of(broker.places.data_dir / f"{topic}-0") for v in vs]


def partition(client: Any, topic: str = "t") -> dict[str, Any]:
    """Its entry in `status`."""
    (found,) = [p for p in client.status()["partitions"] if p["topic"] == topic]
    return dict(found)


@pytest.fixture
def client(broker: Broker) -> Iterator[Any]:
    with broker.client() as made:
        made.create_topic("t")
        yield made


# --- records that can't be ---


def test_records_that_can_t_be_are_refused_and_the_next_ones_go_in(client: Any) -> None:
    client.create_topic("small", config={"max.message.bytes": 1000})
    with client.producer() as producer:
        with pytest.raises(errors.UnknownTopic, match="nowhere"):
            producer.send("nowhere", b"x")
        with pytest.raises(errors.RecordTooLarge, match="1000"):
            producer.send("small", b"x" * 2000).result(timeout=40)
        assert producer.send("small", b"y").result(timeout=40).offset == 0
        assert producer.send("t", b"z").result(timeout=40).offset == 0


def test_a_full_ring_is_buffer_full_and_nothing_in_it_is_lost(broker: Broker, client: Any) -> None:
    (writer,) = broker.workers()
    with client.producer(max_block_ms=200) as producer:
        sent = [producer.send("t", b"0" * 1000)]
        sent[0].result(timeout=40)
        writer.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(errors.BufferFull, match="t-0"):
                for _ in range(20_000):
                    sent.append(producer.send("t", b"%d" % len(sent) * 200))
        finally:
            writer.send_signal(signal.SIGCONT)
        offsets = [receipt.result(timeout=40).offset for receipt in sent]
    assert offsets == list(range(len(sent)))


# --- clients that write rubbish, or die ---


def test_what_a_client_published_before_it_died_is_appended_and_its_ring_freed(
    broker: Broker, client: Any
) -> None:
    before = rings(broker)
    with RawClient(broker.places, "t") as raw:
        for n in range(3):
            raw.put(raw.frame([b"%d" % n]))
        raw.publish()
        half = raw.frame([b"never whole" * 100])
        raw.put(half[: len(half) // 2])  # and then it dies
    eventually(lambda: rings(broker) == before, lambda: rings(broker))
    with client.producer() as producer:
        assert producer.send("t", b"after").result(timeout=40).offset == 3
    client.close()
    broker.stop()
    assert on_disk(broker) == [b"0", b"1", b"2", b"after"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"length": 1 << 30}, "a frame's length passes the published end"),
        ({"seq": 5}, "a frame is out of sequence"),
        ({}, "its head is outside the ring"),
    ],
    ids=["truncated", "reordered", "head"],
)
def test_a_ring_of_rubbish_is_detached_with_a_logged_reason(
    broker: Broker, client: Any, wrong: dict[str, int], reason: str
) -> None:
    with RawClient(broker.places, "t") as raw, client.producer() as producer:
        raw.put(raw.frame([b"good"]))
        raw.put(raw.frame([b"bad"], **wrong))
        raw.publish(None if wrong else 1 << 40)
        eventually(lambda: raw.word(80) != 0, lambda: "it is still attached")
        assert producer.send("t", b"fine").result(timeout=40)
        eventually(lambda: reason in broker.output, lambda: broker.output)
    client.close()
    broker.stop()
    assert set(on_disk(broker)) - {b"good"} == {b"fine"}


def test_a_wrong_checksum_gets_an_error_and_the_ring_lives_on(broker: Broker, client: Any) -> None:
    with RawClient(broker.places, "t") as raw:
        bad = bytearray(raw.frame([b"bad" * 10]))
        bad[-3] ^= 1
        raw.put(bytes(bad))
        raw.put(raw.frame([b"good"]))
        raw.publish()
        eventually(lambda: raw.word(72) == 2, lambda: raw.word(72))
        assert (raw.error(0), raw.error(1)) == (2, 0)
        assert raw.word(80) == 0
    client.close()
    broker.stop()
    assert on_disk(broker) == [b"good"]


def test_a_client_that_never_reads_its_receipts_holds_nobody_up(
    broker: Broker, client: Any
) -> None:
    with RawClient(broker.places, "t", slots=64) as raw, client.producer() as producer:
        for n in range(1000):  # far more than it has places for receipts
            data = raw.frame([b"%d" % n])
            eventually(lambda: raw.room > 4096, lambda: "its ring stays full")
            raw.put(data)
            raw.publish()
            if n % 100 == 0:
                assert producer.send("t", b"other").result(timeout=40)
        eventually(lambda: raw.word(72) == 1000, lambda: raw.word(72))
    client.close()
    broker.stop()
    found = on_disk(broker)
    assert [v for v in found if v != b"other"] == [b"%d" % n for n in range(1000)]
    assert found.count(b"other") == 10


def change(raw: RawClient, places: list[int], over: threading.Event) -> None:
    """Changes headers and batches, over and over."""
    while not over.is_set():
        for at in places[1:]:
            (length,) = struct.unpack_from("<I", raw.ring, at)
            for other in (1 << 31, 61, length + 8, 0, length):
                struct.pack_into("<I", raw.ring, at, other)
            raw.ring[at + 200] ^= 1  # within the batch, under its checksum
            raw.ring[at + 200] ^= 1


def test_lengths_changed_after_publishing_harm_only_their_own_ring(
    broker: Broker, client: Any
) -> None:
    """Another thread changes headers and batches while the writer reads them."""
    with client.producer() as producer:
        for n in range(6):
            with RawClient(broker.places, "t") as raw:
                over = threading.Event()
                values = [[b"%d-%d-" % (n, m) + bytes(2000)] for m in range(40)]
                places = [raw.put(raw.frame(v)) for v in values]

                thread = threading.Thread(target=change, args=(raw, places, over))
                thread.start()
                raw.publish()
                eventually(raw.is_judged, lambda: "neither taken nor detached")
                over.set()
                thread.join()
            assert producer.send("t", b"fine").result(timeout=40)
    client.close()
    broker.stop()
    found = on_disk(broker)
    assert found.count(b"fine") == 6
    sent = {b"%d-%d-" % (n, m) + bytes(2000) for n in range(6) for m in range(40)}
    assert set(found) <= sent | {b"fine"}


# --- the disk ---


#: How a disk of about 24 MiB is mounted at $1, with $2 for what it needs.
DISKS = {
    "tmpfs": 'mount -t tmpfs -o size=24m none "$1"',  # refuses O_DIRECT: buffered
    "ext4": 'truncate -s 30M "$2" && mkfs.ext4 -q -F -m 0 -J size=4 "$2" && '
    'mount -o loop "$2" "$1"',  # the loop device goes with the mount namespace
}


@pytest.fixture
def small_disk(
    isolated_env: dict[str, str],
    tmp_path: Path,
    broker_config: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Broker]:
    """A broker whose data lies on a disk of 24 MiB, in a mount namespace of its own. The
    parameter says which file system it has."""
    Kind = type_of_broker(request)
    made = Kind(isolated_env, tmp_path, broker_config)
    made.places.data_dir.mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        f"exec unshare --mount sh -c '{DISKS[request.param]} && shift 2 && "
        f'exec {sys.executable} "$@"\' sh {made.places.data_dir} {tmp_path}/disk.img "$@"\n'
    )
    python.chmod(0o700)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(python))
        made.start()
    try:
        yield made
    finally:
        made.finish()


def type_of_broker(request: pytest.FixtureRequest) -> Any:
    """The class behind the `broker` fixture: a conftest can't be imported by its name."""
    (conftest,) = [
        plugin
        for plugin in request.config.pluginmanager.get_plugins()
        if getattr(plugin, "__file__", "") == str(Path(__file__).parent / "conftest.py")
    ]
    return conftest.Broker


@pytest.mark.root
@pytest.mark.parametrize(
    ("small_disk", "io_mode"), [("tmpfs", "buffered"), ("ext4", "direct")], indirect=["small_disk"]
)
def test_a_full_disk_makes_records_wait_and_the_partition_returns_by_itself(
    small_disk: Broker, io_mode: str
) -> None:
    broker = small_disk
    inside = Path(f"/proc/{broker.pid}/root{broker.places.data_dir}")
    with broker.client() as client:
        client.create_topic("t", config={"segment.bytes": 1 << 20})
        with client.producer(max_block_ms=200) as producer:
            values = [b"first"]
            sent = [producer.send("t", values[0])]
            sent[0].result(timeout=40)
            assert partition(client)["io_mode"] == io_mode
            free = os.statvfs(inside).f_bavail * os.statvfs(inside).f_frsize
            assert free < 32 << 20, "not the small disk"
            with open(inside / "ballast", "wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, free - (2 << 20))
            with pytest.raises(errors.BufferFull, match="t-0"):
                for n in range(10_000):
                    sent.append(producer.send("t", b"%d " % n + b"x" * 10_000))
                    values.append(b"%d " % n + b"x" * 10_000)
                pytest.fail(str(partition(client)))
            eventually(lambda: partition(client)["state"] == "no_space", lambda: partition(client))
            assert "no room for" in partition(client)["reason"]
            assert "free space" in partition(client)["reason"]
            eventually(lambda: producer.pressure().state == "hard", producer.pressure)
            assert producer.pressure().partitions["t", 0].cause in ("no_space", "ingress")
            eventually(
                lambda: "no_space" in str(partition(client)["pressure"]), lambda: partition(client)
            )
            (wait,) = eventually(lambda: client.status()["waits"], client.status)
            assert (wait["topic"], wait["pid"]) == ("t", os.getpid())
            assert "free space" in wait["why"], "in the writer's own words"
            waiting = [receipt for receipt in sent if not receipt.done()]
            assert waiting, "what found no space waits, and is no error"
            (inside / "ballast").unlink()
            offsets = [receipt.result(timeout=40).offset for receipt in sent]
            assert offsets == list(range(len(sent)))
            # At the next look of the writer: the next segment may have been missing, too.
            eventually(lambda: partition(client)["state"] == "online", lambda: partition(client))
            assert partition(client)["reason"] == ""
            eventually(lambda: producer.pressure().state == "ok", producer.pressure)
    words = ["consume", "t", "--from", "earliest", "--exit-at-end"]
    done = subprocess.run(  # where the disk can be seen
        ["nsenter", "--mount", f"--target={broker.pid}", sys.executable, "-m", PROGRAM, *words],
        env=broker.env, capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split(b"\n")[:-1] == values


@pytest.mark.root
@pytest.mark.parametrize("small_disk", ["tmpfs"], indirect=True)
def test_a_full_disk_stops_the_credit_of_remote_producers_and_loses_nothing(
    small_disk: Broker, tmp_path: Path
) -> None:
    broker = small_disk
    inside = Path(f"/proc/{broker.pid}/root{broker.places.data_dir}")
    with broker.client() as client, zmq.Context() as context:
        client.create_topic("t", config={"segment.bytes": 1 << 20})
        ingress = IngressProcess(client, tmp_path, listen=ListenSection(credit_bytes=1 << 20))
        remote = Remote(context, ingress.address, 1, padding=30_000).open()
        topic = Topic.of(client, "t")
        try:
            remote.produce(topic)
            remote.settled()
            free = os.statvfs(inside).f_bavail * os.statvfs(inside).f_frsize
            with open(inside / "ballast", "wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, free - (2 << 20))
            full = lambda: partition(client)["state"] == "no_space"  # noqa: E731
            while not (full() and ingress.ask("status")["waiting"]):
                if remote.codec.may_send(0):
                    remote.send(remote.make(topic))
                remote.step()
            (line,) = ingress.ask("status")["waiting"]
            assert line["reason"], "who waits is told for what"
            while remote.codec.may_send(0):  # what credit is left, and then no more
                remote.send(remote.make(topic))
            for _ in range(20):
                remote.step()
            assert not remote.refused, "what found no space waits, and is no error"
            assert remote.codec.unacknowledged
            assert ingress.ask("status")["held_bytes"] <= (1 << 20) + 100_000
            (inside / "ballast").unlink()
            remote.settled()
            offsets = [remote.offsets[n] for n in sorted(remote.offsets)]
            assert offsets == list(range(0, 3 * len(offsets), 3))
        finally:
            remote.close()
            ingress.close()


def test_a_partition_of_a_newer_version_is_offline_and_the_others_go_on(
    broker: Broker, client: Any
) -> None:
    client.create_topic("new")
    with client.producer() as producer:
        for topic in ("t", "new"):
            producer.send(topic, b"kept").result(timeout=40)
    client.close()
    broker.stop()
    path = broker.places.data_dir / "new-0" / "checkpoint"
    data = bytearray(path.read_bytes())
    data[12:16] = struct.pack(">I", 2)
    data[8:12] = struct.pack(">I", crc32c(bytes(data[12:])))
    path.write_bytes(data)
    broker.start()
    with broker.client() as client, client.producer() as producer:
        assert producer.send("t", b"more").result(timeout=40).offset == 1
        assert partition(client, "new")["state"] == "offline"
        assert "newer" in partition(client, "new")["reason"]
        with pytest.raises(errors.ShmbrokerError) as caught:
            producer.send("new", b"refused").result(timeout=40)
        assert not isinstance(caught.value, errors.TimedOut)
    broker.stop()
    assert bytes(data) == path.read_bytes(), "it is left alone"
    data[12:16] = struct.pack(">I", 1)
    data[8:12] = struct.pack(">I", crc32c(bytes(data[12:])))
    path.write_bytes(data)
    assert on_disk(broker, "new") == [b"kept"]

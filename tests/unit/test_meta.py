"""The metadata store: what a commit returned from is there again, and half of it never."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmbroker.control.meta import FORMAT_VERSION, MAX_PARTITIONS, MetaStore
from shmbroker.errors import (
    DataDirVersion,
    InvalidPartitions,
    InvalidTopic,
    ShmbrokerError,
    TopicExists,
    UnknownTopic,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meta.db"


@pytest.fixture
def store(path: Path) -> Iterator[MetaStore]:
    opened = MetaStore(path)
    yield opened
    opened.close()


def test_topics_are_there_again_after_reopening(path: Path, store: MetaStore) -> None:
    made = store.create_topic("ticks", 3, {"retention.ms": 5})
    store.create_topic("a.b_c-d", 1, {})
    store.close()
    again = MetaStore(path)
    assert again.topic("ticks") == made
    assert [t.name for t in again.topics()] == ["a.b_c-d", "ticks"]
    assert (made.partitions, made.settings) == (3, {"retention.ms": 5})
    again.close()


def test_the_store_is_durable_at_each_commit(store: MetaStore) -> None:
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "a" * 250, "a\0", "a\n"])
def test_names_that_no_topic_may_have_are_refused(store: MetaStore, name: str) -> None:
    with pytest.raises(InvalidTopic):
        store.create_topic(name, 1, {})
    assert store.topics() == []


def test_a_topic_is_refused_twice_and_with_no_partitions(store: MetaStore) -> None:
    store.create_topic("a" * 249, 1, {})
    with pytest.raises(TopicExists):
        store.create_topic("a" * 249, 1, {})
    for partitions in (0, -1, MAX_PARTITIONS + 1):
        with pytest.raises(InvalidPartitions):
            store.create_topic("b", partitions, {})
    with pytest.raises(UnknownTopic, match="shmbroker topic create b"):
        store.topic("b")


def test_settings_and_partitions_are_altered(store: MetaStore) -> None:
    store.create_topic("t", 2, {"retention.ms": 5})
    assert store.alter_topic("t", {"segment.ms": 7}).settings == {"segment.ms": 7}
    assert store.add_partitions("t", 5).partitions == 5
    assert store.add_partitions("t", 5).partitions == 5
    with pytest.raises(InvalidPartitions, match="5 to"):
        store.add_partitions("t", 4)
    with pytest.raises(UnknownTopic):
        store.alter_topic("absent", {})


def test_a_topic_being_deleted_is_unknown_and_its_name_taken(path: Path, store: MetaStore) -> None:
    topic = store.create_topic("t", 2, {})
    store.end_delete(topic.topic_id)  # not begun: nothing happens
    assert store.topic("t") == topic
    store.begin_delete("t")
    store.close()
    again = MetaStore(path)
    with pytest.raises(UnknownTopic):
        again.topic("t")
    with pytest.raises(UnknownTopic):
        again.begin_delete("t")
    with pytest.raises(TopicExists):
        again.create_topic("t", 1, {})
    (left,) = again.topics_being_deleted()
    assert (left.topic_id, left.partitions, left.deleting) == (topic.topic_id, 2, True)
    again.end_delete(topic.topic_id)
    assert again.create_topic("t", 1, {}).topic_id != topic.topic_id
    assert again._db.execute("SELECT count(*) FROM partitions").fetchone() == (1,)
    again.close()


def test_a_gathering_is_kept_whole_or_not_at_all(store: MetaStore) -> None:
    with store.transaction():
        store.create_topic("a", 1, {})
        with store.transaction():
            store.create_topic("b", 1, {})
        with pytest.raises(TopicExists):  # refused before it wrote: no harm to the others
            store.create_topic("a", 1, {})
    assert [t.name for t in store.topics()] == ["a", "b"]
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.create_topic("c", 1, {})
        raise ZeroDivisionError
    with pytest.raises(ShmbrokerError, match="all undone"), store.transaction():
        store.create_topic("d", 1, {})
        with pytest.raises(ZeroDivisionError), store.transaction():
            raise ZeroDivisionError
    assert [t.name for t in store.topics()] == ["a", "b"]


def test_producer_ids_are_never_given_twice(path: Path, store: MetaStore) -> None:
    given = [store.allocate_producer_id() for _ in range(1500)]
    store.close()
    for _ in range(3):
        again = MetaStore(path)
        given += [again.allocate_producer_id() for _ in range(3)]
        again.close()
    assert len(set(given)) == len(given)
    assert min(given) > 0
    assert given == sorted(given)


def test_an_undone_block_of_producer_ids_leaves_the_store_in_order(store: MetaStore) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.allocate_producer_id()
        raise ZeroDivisionError
    given = [store.allocate_producer_id() for _ in range(2000)]
    assert len(set(given)) == 2000


KILLED = """
import os, sys
from pathlib import Path
from shmbroker.control.meta import MetaStore
store = MetaStore(Path(sys.argv[1]))
store.create_topic("kept", 2, {})
print(store.allocate_producer_id(), flush=True)
with store.transaction():
    store.create_topic("lost", 2, {})
    os.kill(os.getpid(), 9)
"""


def test_what_was_committed_survives_kill_9_and_half_a_gathering_does_not(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9
    store = MetaStore(path)
    assert [t.name for t in store.topics()] == ["kept"]
    assert store.allocate_producer_id() > int(done.stdout)
    store.close()


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0])
def test_another_version_is_refused_and_left_alone(path: Path, version: int) -> None:
    MetaStore(path).close()
    db = sqlite3.connect(path)
    db.execute("UPDATE store SET value = ? WHERE key = 'format_version'", (version,))
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(DataDirVersion, match=f"format version {version}"):
        MetaStore(path)
    assert path.read_bytes() == before


def test_what_is_no_store_is_refused(path: Path) -> None:
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(DataDirVersion, match="can't be used"):
        MetaStore(path)
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE somebody_elses (x)")
    db.commit()
    db.close()
    with pytest.raises(DataDirVersion):
        MetaStore(path)

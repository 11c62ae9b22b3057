"""What the tests of streams share: a broker for a whole module, readers of it, records."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stream_rig import LIMIT_S, ReaderRig

from .conftest import Broker

SEGMENTS = {"segment.bytes": 1 << 20, "max.message.bytes": 100_000}
#: Rings so small that most of what is sent is soon in segments alone.
SMALL_RINGS = (
    '[broker]\nwriters = 1\n[memory]\nring_max_bytes = "256KiB"\n'
    '[log]\n"max.message.bytes" = 100000\n'
)


@contextlib.contextmanager
def shared_broker(factory: pytest.TempPathFactory, config: str = "") -> Iterator[Broker]:
    """For all tests of a module; each deletes the topics that it made (`reader_of` does)."""
    root = factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patched:
        for name in [n for n in os.environ if n.startswith("SHMBROKER_")]:
            patched.delenv(name)
        patched.setenv("SHMBROKER_PARK_FOREVER", "1")
        for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HOME"):
            (root / name).mkdir()
            patched.setenv(name, str(root / name))
        made = Broker(dict(os.environ), root, config)
    made.start()
    try:
        yield made
    finally:
        made.finish()


@contextlib.contextmanager
def reader_of(broker: Broker, directory: Path, *options: Any) -> Iterator[ReaderRig]:
    """A reader; when it ends, no topic is left."""
    with ReaderRig(str(broker.places.runtime_dir), directory, *options) as made:
        yield made
        if broker.running and not made.gone.is_set():
            for name in made.client.topics():
                made.client.delete_topic(name)


def fill(rig: ReaderRig, count: int, size: int = 500, topic: str = "t", partition: int = 0) -> None:
    """So many records more, durable, in batches of very different sizes."""
    rng = random.Random(count)
    with rig.client.producer() as producer:
        while count > 0:
            n = min(count, rng.choice([1, 3, 20, 100]))
            producer.send_many(topic, [os.urandom(size // 2).hex().encode()] * n,
                               partition=partition)  # fmt: skip
            count -= n
            if count % 5 == 0:
                producer.flush(LIMIT_S)
        producer.flush(LIMIT_S)

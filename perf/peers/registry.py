"""All drivers, in the order in which they run and are shown: the broker first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shmbroker.perf.peers.iceoryx2 import Iceoryx2
from shmbroker.perf.peers.kafka import Kafka
from shmbroker.perf.peers.mpqueue import MultiprocessingQueue
from shmbroker.perf.peers.nats import Nats
from shmbroker.perf.peers.peer import Peer
from shmbroker.perf.peers.pyzmq import Pyzmq
from shmbroker.perf.peers.rabbitmq import Rabbitmq
from shmbroker.perf.peers.redis import Redis
from shmbroker.perf.peers.shmbroker import Shmbroker

ALL: Final[tuple[type[Peer], ...]] = (
    Shmbroker, Kafka, Redis, Nats, Rabbitmq, Pyzmq, MultiprocessingQueue, Iceoryx2,
)  # fmt: skip


def chosen(names: Sequence[str]) -> tuple[type[Peer], ...]:
    """Those of these names, all when there are none; raises ValueError."""
    unknown = sorted(set(names) - {peer.name for peer in ALL})
    if unknown:
        known = ", ".join(peer.name for peer in ALL)
        raise ValueError(f"no peer is called {unknown[0]!r}; there are: {known}")
    return tuple(peer for peer in ALL if not names or peer.name in names)


__all__ = ["ALL", "chosen"]

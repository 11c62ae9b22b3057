"""The whole of `status`: what its parts (status.py) and the workers' answers make together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shmbroker.workers import status, waiting

if TYPE_CHECKING:
    from shmbroker.workers.acceptor import Acceptor

Told = Mapping[int | str, Mapping[str, Any]]


def gather(acceptor: Acceptor, started_s: float, answers: Told) -> dict[str, Any]:
    """Everything `status --json` prints; `answers` by writer, and by name of a front end."""
    state, places = acceptor.state, acceptor.options.places
    told = {writer: words for writer, words in answers.items() if isinstance(writer, int)}
    links = {writer: link.state for writer, link in acceptor.links.items()}
    partitions = status.partitions_status(state.memory, state.plan, acceptor.topics, told)
    waiting.add_pressure(partitions, acceptor.pressure, state.plan)
    clients = status.clients_status(state.memory.prefix, acceptor.sessions, partitions, told)
    others = {name: words for name, words in answers.items() if isinstance(name, str)}
    return acceptor.describe() | {
        "state": "stopping" if acceptor.shutdown.begun else
                 "running" if acceptor.ready else "starting",
        "started_s": started_s,
        "uptime_s": round(time.time() - started_s, 3),
        "endpoints": {name: places.socket_path(name)
                      for name in ("attach", "control", "events", "workers")},
        "processes": acceptor.supervisor.processes(),
        "writers_limit": state.plan.writers_limit,
        "memory": state.memory.usage(),
        "writers": status.writers_status(state.memory, state.plan, links, told),
        "topics": len(acceptor.topics.topics()),
        "consumer_groups": acceptor.groups.counts(),
        "partition_states": status.totals(partitions),
        "partitions": partitions,
        "clients": clients,
        "waits": waiting.waits(clients, partitions, told, others, time.monotonic()),
        "listen": _listen(acceptor, others),
    }  # fmt: skip


def _listen(acceptor: Acceptor, told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What is bound for programs elsewhere, and who came; None: nothing listens."""
    described: dict[str, Any] | None = acceptor.describe_listening()
    if described is None:
        return None
    return described | {
        "keys_refused": acceptor.remote.keys_refused,
        "hellos_refused": acceptor.remote.hellos_refused,
        "workers": acceptor.front_ends.describe(told),
        "clients": acceptor.remote.status(),
    }


__all__ = ["gather"]

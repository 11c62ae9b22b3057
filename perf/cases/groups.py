"""Consumer groups over the real wire: durable commits a second, and rebalances.

The members are bare programs elsewhere (group_wire.py), over TCP. The limit of the commits is
SQLite alone, with the same number of rows to a transaction. A rebalance ends when every member has
what it shall have; how many partitions have then another owner stands beside how many must.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Final

from shmbroker.perf.case import Bench, Case
from shmbroker.perf.group_wire import Members
from shmbroker.perf.groups import bare
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import percentile

_TOPIC: Final = "groups"
_LISTENS: Final = '[listen]\naddress = "tcp://127.0.0.1:0"\n'
_MEMBERS: Final = 50
_TARGET_COMMITS: Final = 5_000.0
_TARGET_S: Final = 2.0


def _commits(bench: Bench) -> list[Row]:
    members = 4 if bench.sizes.smoke else _MEMBERS
    seconds = bench.sizes.load_s
    rates: list[float] = []
    limits: list[float] = []
    trips: list[float] = []
    with bench.broker(_LISTENS) as broker:
        with broker.connect() as client:
            client.create_topic(_TOPIC, partitions=members)
            with client.producer() as producer:  # so that there is something to commit
                for n in range(members):
                    producer.send_many(_TOPIC, [b"x"], partition=n)
                producer.flush()
            listen = client.status()["listen"]
        token = Path(listen["token_file"]).read_text().strip()
        with Remote(Members, listen["control"][0], token, members + 1) as group:
            group.call("join", 0, members, _TOPIC, members)
            for n in range(bench.sizes.plan.warmups + bench.sizes.plan.rounds):
                rate, beside = group.call("commit", seconds)
                limit = bare(bench.home / f"bare-{n}.db", members, seconds / 3)
                if n >= bench.sizes.plan.warmups:
                    rates.append(rate)
                    limits.append(limit)
                    trips += beside
    for path in bench.home.glob("bare-*.db*"):
        path.unlink()
    rate, limit = statistics.median(rates), statistics.median(limits)
    return [
        Row(
            case="groups-commits",
            figure=f"durable commits of {members} remote members, one at a time each",
            unit="commits/s",
            values=tuple(rates),
            limit=Limit("SQLite alone, as many rows a transaction", limit, "commits/s"),
            ratio=rate / limit,
            target=f">= {_TARGET_COMMITS:,.0f}",
            met=rate >= _TARGET_COMMITS,
            more={
                "another request meanwhile, p50 ms": percentile(trips, 0.5),
                "p99 ms": percentile(trips, 0.99),
                "longest ms": max(trips),
            },
        )
    ]


def _rebalance(bench: Bench) -> list[Row]:
    partitions = bench.sizes.many_partitions
    members = partitions // 10
    joins: list[float] = []
    ones: list[float] = []
    extra: list[int] = []
    rounds = min(3, bench.sizes.plan.rounds)
    with bench.broker(_LISTENS) as broker:
        with broker.connect() as client:
            client.create_topic(_TOPIC, partitions=partitions)
            listen = client.status()["listen"]
        token = Path(listen["token_file"]).read_text().strip()
        for n in range(rounds):
            with Remote(Members, listen["control"][0], token, members, f"g{n}") as group:
                took, _ = group.call("join", 0, members, _TOPIC, partitions)
                joins.append(took)
                took, moved = group.call("leave", members, partitions)
                ones.append(took)
                extra.append(moved - partitions // members)  # what the one that went had
                took, moved = group.call("join", members - 1, members, _TOPIC, partitions)
                ones.append(took)
                extra.append(moved - partitions // members)
    return [
        Row(
            case="groups-rebalance",
            figure=f"{members} members join at once, {partitions:,} partitions, until settled",
            unit="s",
            values=tuple(joins),
            target=f"<= {_TARGET_S:g} s",
            met=max(joins) <= _TARGET_S,
        ),
        Row(
            case="groups-rebalance-one",
            figure=f"one of {members} leaves or joins, until settled",
            unit="s",
            values=tuple(ones),
            target=f"<= {_TARGET_S:g} s, no partition moved that need not",
            met=max(ones) <= _TARGET_S and not any(extra),
            more={"moved beyond the least": float(sum(extra))},
        ),
    ]


CASES: Final = (
    Case("groups-commits", "durable commits of remote members", _commits, lambda _: 1 << 30),
    Case("groups-rebalance", "rebalances over the wire", _rebalance, lambda _: 1 << 30),
)

__all__ = ["CASES"]

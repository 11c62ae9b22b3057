"""The cases of the core, one file a figure (or a few that share their set-up)."""

from typing import Final

from shmbroker.perf.case import Case
from shmbroker.perf.cases import (
    cli_lines,
    client,
    consume,
    data,
    durable_one,
    group_checkpoints,
    groups,
    idle,
    many_partitions,
    recovery,
    remote,
    remote_consume,
    remote_ingress,
    round_trip,
    send_loop,
    send_many,
    startup,
    stream,
)

#: In the order of the issue's table.
ALL: Final[tuple[Case, ...]] = (
    *send_many.CASES,
    *send_loop.CASES,
    *round_trip.CASES,
    *durable_one.CASES,
    *consume.CASES,
    *cli_lines.CASES,
    *data.CASES,
    *client.CASES,
    *startup.CASES,
    *recovery.CASES,
    *idle.CASES,
    *stream.CASES,
    *remote_consume.CASES,
    *group_checkpoints.CASES,
    *many_partitions.CASES,
    *remote_ingress.CASES,
    *remote.CASES,
    *groups.CASES,
)

__all__ = ["ALL"]

"""`up`, `down` and `status`."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from shmbroker.cli.options import (
    ConfigFile,
    DataDir,
    Instance,
    Json,
    Timeout,
    complain,
    configuration,
    connect,
    places,
)


def up(
    data_dir: DataDir = None,
    instance: Instance = None,
    config: ConfigFile = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when the broker is ready.")
    ] = False,
) -> None:
    """Start a broker, in this terminal or (--detach) in the background.

    Ctrl+C stops it: the first lets writers drain and sync (at most broker.drain_s), a second stops
    at once, and what was acknowledged is still there at the next up.

    Example: shmbroker up --instance ticks --detach
    """
    where = places(instance, data_dir, config)
    loaded = configuration(where)
    if detach:
        from shmbroker.workers import detached

        pid = detached.start(where, loaded)
        print(f"broker {where.instance!r} is up: pid {pid}, log {detached.log_path(where, loaded)}")
        return
    from shmbroker.workers.acceptor import UpOptions
    from shmbroker.workers.acceptor_main import run

    ready = f"broker {where.instance!r} is up: data {where.data_dir}; Ctrl+C stops it"
    code = run(UpOptions(where, loaded), lambda _acceptor: print(ready, file=sys.stderr))
    raise typer.Exit(code)


def down(
    instance: Instance = None,
    data_dir: DataDir = None,
    drain_s: Annotated[
        float | None,
        typer.Option("--drain-s", min=0, help="Seconds to drain, else broker.drain_s."),
    ] = None,
    timeout: Timeout = 5.0,
) -> None:
    """Stop a broker; returns when its last process is gone.

    Example: shmbroker down --instance ticks
    """
    from shmbroker.workers import detached

    client = connect(instance, data_dir, timeout)
    name = client.instance

    def show(left: list[str]) -> None:
        print(f"waiting for {', '.join(left)}", file=sys.stderr)

    try:
        clean = detached.stop(client, drain_s, show)
    finally:
        client.close()
    print(f"broker {name!r} is down")
    if not clean:
        complain(
            "shmbroker: a writer did not drain; nothing acknowledged is lost while the host stays "
            "up: its rings wait in /dev/shm for the next shmbroker up (why: broker.log)"
        )
        raise typer.Exit(1)


def status(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl+C (exit code 0).")
    ] = False,
    interval: Annotated[
        float,
        typer.Option("--interval", min=0.1, metavar="SECONDS", help="Between two, with --watch."),
    ] = 1.0,
    instance: Instance = None,
    data_dir: DataDir = None,
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Show a broker's processes, memory, writers, partitions and clients.

    A terminal gets the columns that it has room for; a pipe gets all.

    Example: shmbroker status --json | jq '.partitions[] | select(.state != "online")'
    """
    client = connect(instance, data_dir, timeout)
    try:
        if watch:
            from shmbroker.cli.watching import watch_status

            with contextlib.suppress(KeyboardInterrupt):  # the way to end it, as with watch(1)
                watch_status(client, interval, json=json)
            return
        found = client.status()
    finally:
        client.close()
    if json:
        import orjson

        sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))
        return
    from shmbroker.cli.status_view import console, render

    out = console()
    out.print(render(found, out.width))

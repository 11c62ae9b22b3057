"""`up`, `down` and `status`."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from shmbroker.config import Places


def up(
    data_dir: DataDir = None,
    instance: Instance = None,
    config: ConfigFile = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when the broker is ready.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="ADDRESS",
            show_default=False,
            help="Where programs elsewhere reach it: tcp://HOST:PORT (0 picks one), or ipc.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without keys.")
    ] = False,
) -> None:
    """Start a broker, in this terminal or (--detach) in the background.

    Ctrl+C stops it: the first lets writers drain and sync (at most broker.drain_s), a second stops
    at once, and what was acknowledged is still there at the next up. No port is open but with
    --listen or [listen] in the configuration.

    Example: shmbroker up --instance ticks --detach

    Example: shmbroker up --listen tcp://127.0.0.1:9300
    """
    where = places(instance, data_dir, config)
    flags = _listen_flags(listen, insecure)
    loaded = configuration(where, flags)
    if detach:
        from shmbroker.workers import detached

        pid = detached.start(where, loaded, flags=flags)
        log = detached.log_path(where, loaded)
        print(f"broker {where.instance!r} is up: pid {pid}, log {log}{_bound(where)}")
        return
    from shmbroker.workers.acceptor import UpOptions
    from shmbroker.workers.acceptor_main import run

    def ready(_acceptor: object) -> None:
        text = f"broker {where.instance!r} is up: data {where.data_dir}{_bound(where)}"
        print(f"{text}; Ctrl+C stops it", file=sys.stderr)

    raise typer.Exit(run(UpOptions(where, loaded), ready))


def _listen_flags(listen: str | None, insecure: bool) -> dict[str, Any]:
    """As keys of the configuration."""
    flags: dict[str, Any] = {"listen.insecure": insecure or None}
    flags["listen.unix" if listen == "ipc" else "listen.address"] = (
        True if listen == "ipc" else listen
    )
    return flags


def _bound(where: Places) -> str:
    """What a broker that has just come up listens on, as it says itself."""
    from shmbroker.workers.broker_state import read_broker_file

    listen = read_broker_file(where).get("listen")
    return f", listening on {', '.join(listen['control'])}" if listen else ""


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

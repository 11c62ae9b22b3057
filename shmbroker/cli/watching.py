"""`status --watch`: a status every so often, with the rates between two.

On a terminal it fills the screen and gives it back at the end; in a pipe one follows the other. A
broker that is gone is waited for, as every client waits.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from shmbroker import errors
from shmbroker.cli.status_view import console, render

if TYPE_CHECKING:
    from shmbroker.client import Client


def watch_status(client: Client, interval_s: float, *, json: bool) -> None:
    """Until Ctrl+C. Raises BrokerGone when the broker does not come back."""
    if json:
        _lines(client, interval_s)
        return
    out = console()
    if not out.is_terminal:
        _plain(client, interval_s, out)
        return
    before: dict[str, Any] | None = None
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            try:
                found = client.status()
                live.update(render(found, out.width, before or found), refresh=True)
                before = found
            except errors.TimedOut as error:
                live.update(Text(f"{error}; asking again"), refresh=True)
            time.sleep(interval_s)


def _lines(client: Client, interval_s: float) -> None:
    import orjson

    while True:
        line = orjson.dumps(client.status(), option=orjson.OPT_APPEND_NEWLINE)
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        time.sleep(interval_s)


def _plain(client: Client, interval_s: float, out: Console) -> None:
    before: dict[str, Any] | None = None
    while True:
        found = client.status()
        out.print(render(found, out.width, before or found))
        out.print("")
        sys.stdout.flush()
        before = found
        time.sleep(interval_s)


__all__ = ["watch_status"]

"""The options that several commands share, and what they lead to."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shmbroker.client import Client
    from shmbroker.config import LoadedConfig, Places

_COMPLETE_S = 0.5  # somebody has pressed the tabulator and waits

Instance = Annotated[
    str | None,
    typer.Option(
        "--instance",
        help="Name of the broker, or where one listens (tcp://HOST:PORT), else SHMBROKER_INSTANCE, "
        'else "default".',
        show_default=False,
    ),
]  # fmt: skip
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Data directory, else SHMBROKER_DATA_DIR, else by the instance's name.",
        show_default=False,
    ),
]  # fmt: skip
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Configuration (TOML), else SHMBROKER_CONFIG, else the XDG place.",
        show_default=False,
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0, metavar="SECONDS", help="To wait for the broker.")
]


def complain(text: str) -> None:
    """To standard error: one line, which a terminal gets wrapped between words."""
    if sys.stderr.isatty():
        import shutil
        import textwrap

        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False,
                             break_on_hyphens=False)  # fmt: skip
    print(text, file=sys.stderr)


def ask(question: str, yes: bool) -> None:
    """Goes on if `yes`, or if somebody at the terminal says so."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody to ask: standard input is no terminal; use --yes")
    typer.confirm(question, abort=True, err=True)


def complete_topic(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of topics for the shell; none where no broker answers, and never a word or a wait."""
    given = ctx.params
    with contextlib.suppress(Exception):
        client = connect(given.get("instance"), given.get("data_dir"), _COMPLETE_S)
        with contextlib.closing(client):
            return [name for name in client.topics() if name.startswith(incomplete)]
    return []


TopicName = Annotated[
    str, typer.Argument(help="Name of a topic.", show_default=False, autocompletion=complete_topic)
]


def places(
    instance: str | None, data_dir: Path | None = None, config: Path | None = None
) -> Places:
    """Where the broker keeps its things; ConfigError for a name that can't be."""
    from shmbroker.config import Places

    return Places.find(instance, data_dir=data_dir, config=config)


def configuration(where: Places, flags: Mapping[str, Any] | None = None) -> LoadedConfig:
    """The configuration of a broker at these places; ConfigError names what is wrong."""
    from shmbroker.config import load

    return load(where.config_file, flags=flags)


def connect(
    instance: str | None, data_dir: Path | None, timeout: float, *, here: bool = False
) -> Client:
    """An attached client, to be closed by the caller; NoBroker without a broker.

    NotSupported for a broker elsewhere, if the command needs its files `here`.
    """
    import shmbroker

    client: Any = shmbroker.connect(instance, data_dir=data_dir, timeout=timeout)
    found: Client = client
    if here and not hasattr(found.connection.attachment, "data_dir"):
        found.close()
        raise shmbroker.NotSupported(
            f"this reads the broker's files, and the broker at {found.address} is elsewhere; "
            "run it on the broker's host"
        )
    return found

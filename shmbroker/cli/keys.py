"""`keys generate|list|authorize|revoke`: who may reach a broker beyond its host."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shmbroker.cli.options import ConfigFile, Instance, Json, configuration, places

if TYPE_CHECKING:
    from shmbroker.control.keys import KeyDirectory

app = typer.Typer(no_args_is_help=True, help="Keys for programs on other hosts.")

Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir", metavar="DIR", show_default=False,
        help="The directory of keys, else listen.keys, else beside the configuration.",
    ),
]  # fmt: skip
Name = Annotated[str, typer.Argument(help="Name of a client.", show_default=False)]


@app.command()
def generate(
    client: Annotated[
        list[str] | None,
        typer.Option(
            "--client",
            metavar="NAME",
            show_default=False,
            help="Make a key for this program too and let it in. May be repeated.",
        ),
    ] = None,
    directory: Directory = None,
    instance: Instance = None,
    config: ConfigFile = None,
) -> None:
    """Make the broker's keys and certificate where they are missing, and keys for clients.

    What is there stays. Each client gets a directory to carry to its host, over a channel that
    nobody reads: it holds the client's secret.

    Example: shmbroker keys generate --client laptop
    """
    keys = _keys(directory, instance, config)
    for path in keys.generate((socket.gethostname(),)):
        print(f"made {path}")
    for name in client or ():
        made = keys.add_client(name)
        print(f"client {name!r} is let in; carry {made} to its host: connect(…, keys=DIR)")


@app.command("list")
def list_clients(
    directory: Directory = None,
    instance: Instance = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """List the clients that are let in, with their public keys.

    Example: shmbroker keys list
    """
    for name, key in _keys(directory, instance, config).clients().items():
        if json:
            import orjson

            line = {"name": name, "public_key": key.decode()}
            sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        else:
            print(f"{name}\t{key.decode()}")


@app.command()
def authorize(
    name: Name,
    key: Annotated[
        Path, typer.Argument(help="File with the client's public key.", show_default=False)
    ],
    directory: Directory = None,
    instance: Instance = None,
    config: ConfigFile = None,
) -> None:
    """Let a client in by its public key; a running broker knows at once.

    Example: shmbroker keys authorize laptop laptop.key
    """
    from shmbroker.control.keys import read_pair

    print(f"made {_keys(directory, instance, config).authorize(name, read_pair(key).public)}")


@app.command()
def revoke(
    name: Name,
    directory: Directory = None,
    instance: Instance = None,
    config: ConfigFile = None,
) -> None:
    """Let a client in no more, at once; streams that it has open end at the broker's next start.

    Example: shmbroker keys revoke laptop
    """
    _keys(directory, instance, config).revoke(name)
    print(f"client {name!r} is let in no more")


def _keys(directory: Path | None, instance: str | None, config: Path | None) -> KeyDirectory:
    from shmbroker.control.keys import KeyDirectory
    from shmbroker.control.listening import key_directory

    if directory is not None:
        return KeyDirectory(directory.expanduser().absolute())
    where = places(instance, None, config)
    return key_directory(where, configuration(where).config.listen)

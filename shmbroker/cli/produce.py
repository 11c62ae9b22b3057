"""`produce`: lines in, records out."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from shmbroker.cli.line_blocks import line_blocks, one_byte
from shmbroker.cli.options import DataDir, Instance, Timeout, TopicName, connect

if TYPE_CHECKING:
    from shmbroker.cli.sending import Sending

Show = Callable[[int, int], None]  # bytes read, lines sent
_SHOW_EVERY_BYTES = 4 << 20


def produce(
    topic: TopicName,
    file: Annotated[
        Path | None,
        typer.Argument(help="A file or a pipe, else (or -) standard input.", show_default=False),
    ] = None,
    key_separator: Annotated[
        str | None,
        typer.Option(
            "--key-separator",
            "-K",
            help="What stands before it in a line is the key, else there are none.",
        ),
    ] = None,
    partition: Annotated[
        int | None,
        typer.Option(
            "--partition", "-p", min=0, help="Its number, else the key decides, or the client."
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header", "-H", metavar="NAME=VALUE", help="Of every record; may be repeated."
        ),
    ] = None,
    form: Annotated[
        Literal["lines", "json"],
        typer.Option("--format", "-f", help="A line is a value, or a record as consume prints it."),
    ] = "lines",
    delimiter: Annotated[
        str, typer.Option("--delimiter", "-D", help="The byte that ends a line.")
    ] = r"\n",
    acks: Annotated[
        Literal["durable", "memory", "none"],
        typer.Option(
            "--acks",
            help="When a line counts as sent: on stable storage, in the "
            "broker's memory, on its way.",
        ),
    ] = "durable",
    compression: Annotated[
        Literal["none", "gzip", "snappy", "lz4", "zstd"],
        typer.Option("--compression", "-z", help="Of whole batches."),
    ] = "none",
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:
    r"""Send each line of a file or of standard input as a record, in constant memory.

    Lines that fail are named by number on standard error, the others are sent, and the exit code is
    1. A value holds what stands in its line; for values with line ends in them: --delimiter '\0',
    or --format json.

    Example: printf 'AAPL:1\nMSFT:2\n' | shmbroker produce ticks --key-separator :
    """  # fmt: skip
    from shmbroker.cli.sending import Sending

    if file is not None and str(file) != "-" and (not file.exists() or file.is_dir()):
        raise typer.BadParameter(f"{file} is no file that can be read", param_hint="FILE")
    if form == "json" and key_separator is not None:
        raise typer.BadParameter("a line of JSON names its key", param_hint="--key-separator")
    separator = key_separator.encode() if key_separator is not None else None
    if separator == b"":
        raise typer.BadParameter("must not be empty", param_hint="--key-separator")
    headers = [_header(given) for given in header or ()]
    ends = _delimiter(delimiter)
    client = connect(instance, data_dir, timeout)
    try:
        sending = Sending(
            client, topic, partition=partition, headers=headers, separator=separator,
            json=form == "json", acks=acks, compression=compression,
        )  # fmt: skip
        with _opened(file) as lines:
            try:
                _send(sending, lines, ends, topic)
            finally:
                sending.close()
                sending.report()
    finally:
        client.close()
    if sending.failed:
        raise typer.Exit(1)


def _send(sending: Sending, lines: BinaryIO, delimiter: bytes, topic: str) -> None:
    taken = shown = 0

    def read(count: int) -> None:
        nonlocal taken
        taken += count

    with _progress(lines, topic) as show:
        for number, block in line_blocks(lines, delimiter, sending.too_long, read):
            sending.send(number, block)
            if taken - shown >= _SHOW_EVERY_BYTES:
                shown = taken
                show(taken, sending.sent)
        sending.settle()
        show(taken, sending.sent)


@contextlib.contextmanager
def _opened(file: Path | None) -> Iterator[BinaryIO]:
    """The stream, told to the kernel as read in order; standard input is not closed."""
    if file is None or str(file) == "-":
        yield sys.stdin.buffer
        return
    with file.open("rb") as stream:
        with contextlib.suppress(OSError):  # a pipe
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield stream


@contextlib.contextmanager
def _progress(lines: BinaryIO, topic: str) -> Iterator[Show]:
    """A bar on a terminal, unless somebody types there; otherwise nothing."""
    if not sys.stderr.isatty() or lines.isatty():
        yield lambda _taken, _sent: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    found = os.fstat(lines.fileno())
    total = found.st_size if stat.S_ISREG(found.st_mode) else None
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[lines]:,} lines", markup=False),
        *([TimeRemainingColumn()] if total else []),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True, transient=True) as progress:
        task = progress.add_task(topic, total=total, lines=0)
        yield lambda taken, sent: progress.update(task, completed=taken, lines=sent)


def _header(given: str) -> tuple[str, bytes]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{given!r} is not NAME=VALUE", param_hint="--header")
    return name, value.encode("utf-8", "surrogateescape")


def _delimiter(given: str) -> bytes:
    try:
        return one_byte(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--delimiter") from None

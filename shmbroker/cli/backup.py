"""`backup` and `restore`: all of a running broker's data in a directory, and back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from shmbroker.cli.options import DataDir, Instance, Json, Timeout, complain, connect, places

Show = Callable[[str, int], None]


def backup(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Empty, new, or an interrupted backup.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Copy nothing: check every byte of the backup in DIR.")
    ] = False,
    json: Json = False,
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:
    """Copy a running broker's topics and records, up to what is durable now, into DIR.

    Nothing stops meanwhile. Every batch's CRC is checked; DIR/backup.json, written last, names each
    file with its CRC-32C. Interrupted, the same command goes on. With --verify no broker is needed,
    what is not as it was written is named, and the exit code is 5.

    Example: shmbroker backup /backup/ticks && shmbroker backup /backup/ticks --verify
    """
    if verify:
        _verify(directory, json)
        return
    from shmbroker.workers import backup as work

    client = connect(instance, data_dir, timeout, here=True)
    try:
        sources = work.sources_of(client)
        with _bar(work.total_bytes(sources)) as show:
            made = work.backup(client, directory, sources, show)
    except KeyboardInterrupt:
        complain(f"shmbroker: interrupted; go on with: shmbroker backup {directory}")
        raise
    finally:
        client.close()
    for p in made.partitions if json else ():
        _print_json({
            "topic": p.topic, "partition": p.partition, "directory": p.directory,
            "log_start_offset": p.log_start_offset, "end_offset": p.end_offset,
        })  # fmt: skip
    size = sum(entry.size_bytes for entry in made.files)
    _say(f"{_count(len(made.partitions), 'partition')}, {_count(len(made.files), 'file')}, "
         f"{size:,} bytes are in {directory}", json)  # fmt: skip


def restore(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A whole backup.")],
    instance: Instance = None,
    data_dir: DataDir = None,
) -> None:
    """Make an empty data directory that of the backup in DIR; no broker may run there.

    Every byte is checked on the way. `shmbroker up` then serves it, with the offsets of the backup,
    as a broker of its own: clients of the old one notice, and committed offsets behind its end are
    told of. Interrupted, the same command goes on.

    Example: shmbroker restore /backup/ticks --instance ticks2 && shmbroker up --instance ticks2
    """
    from shmbroker.log import manifest
    from shmbroker.workers import backup as work

    where = places(instance, data_dir)
    total = sum(entry.size_bytes for entry in manifest.load(str(directory)).files)
    with _bar(total) as show:
        made = work.restore(directory, where.data_dir, show)
    way = "" if where.instance == "default" else f" --instance {where.instance}"
    if data_dir is not None:
        way += f" --data-dir {data_dir}"
    print(f"{_count(len(made.partitions), 'partition')} restored into {where.data_dir}; start it "
          f"with: shmbroker up{way}")  # fmt: skip


def _verify(directory: Path, json: bool) -> None:
    from shmbroker.workers import backup as work

    damaged = checked = 0
    for entry, wrong in work.verify(directory, lambda _name, _count: None):
        checked += 1
        damaged += bool(wrong)
        if json:
            _print_json({"file": entry.path, "bytes": entry.size_bytes, "problem": wrong or None})
        elif wrong:
            print(f"{directory / entry.path}: {wrong}")
    if damaged:
        complain(
            f"shmbroker: {damaged} of {checked} files are damaged in {directory}; the backup "
            "can't be restored: make another"
        )
        raise typer.Exit(5)
    _say(f"{_count(checked, 'file')} in {directory}: all as written", json)


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Show]:
    """A progress bar on a terminal, otherwise nothing."""
    if not sys.stderr.isatty():
        yield lambda _name, _count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
               DownloadColumn(binary_units=True), TransferSpeedColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), expand=True, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda name, count: progress.update(task, description=name, advance=count)


def _say(text: str, json: bool) -> None:
    print(text, file=sys.stderr if json else sys.stdout)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _print_json(value: object) -> None:
    import orjson

    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))

"""`log dump|verify|repair`: what stands in a partition's files, and cutting where it is damaged."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from shmbroker import errors
from shmbroker.cli.options import DataDir, Instance, Json, complain, connect, places

app = typer.Typer(
    help="Look into segments and indexes, verify them, repair damage.", no_args_is_help=True
)


@app.command()
def dump(
    path: Annotated[Path, typer.Argument(help="A partition's directory, or one of its files.")],
    json: Json = False,
    summary: Annotated[bool, typer.Option("--summary", help="Leave out batches.")] = False,
    instance: Instance = None,
) -> None:
    """Print segments, indexes, snapshots and checkpoints, verifying every CRC and index entry.

    Where a broker runs it stops at the durable end: behind it the file is being written. Ends with
    exit code 5 when something is wrong.

    Example: shmbroker log dump ~/.local/share/shmbroker/default/ticks-0 --json
    """
    if not path.exists():
        raise typer.BadParameter(f"{path} does not exist", param_hint="PATH")
    from shmbroker.log.dump import dump as read

    problems = 0
    for item in read(str(path), limit=_durable_limit(path, instance), batches=not summary):
        problems += item["kind"] == "problem"
        if json:
            _print_json(item)
        else:
            print(_text(item))
    if problems:
        print(f"shmbroker: {problems} problem(s) found in {path}", file=sys.stderr)
        raise typer.Exit(5)


@app.command()
def verify(
    partitions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TOPIC-PARTITION]...", help="May be repeated, else all."),
    ] = None,
    json: Json = False,
    instance: Instance = None,
    data_dir: DataDir = None,
) -> None:
    """Check partitions: every CRC, every index entry, the checkpoint; changes nothing.

    Reads all of the log, beside a running broker up to its durable end. One line a partition, its
    problems below it; exit code 5 when there are any.

    Example: shmbroker log verify ticks-0 ticks-1
    """
    where = places(instance, data_dir)
    home, limits = _live(instance, data_dir)
    home = home or where.data_dir
    if not home.is_dir():
        raise typer.BadParameter(f"{home} does not exist", param_hint="--data-dir")
    damaged = 0
    for name in _directories(home, partitions or []):
        damaged += not _verify(home / name, limits.get((home / name).resolve()), json)
    if damaged:
        complain(
            f"shmbroker: {damaged} damaged partition(s); see what a repair would lose with: "
            "shmbroker log repair"
        )
        raise typer.Exit(5)


def _verify(directory: Path, limit: tuple[int, int] | None, json: bool) -> bool:
    from shmbroker.log.verify import verify

    found = verify(str(directory), limit)
    if json:
        _print_json(asdict(found))
    else:
        verdict = "fine" if not found.problems else f"{len(found.problems)} problem(s)"
        print(
            f"{directory.name}: {verdict}: offsets {max(0, found.start_offset)} to "
            f"{max(0, found.end_offset)}, {found.records:,} records in {found.batches:,} batches, "
            f"{found.segments} segment{'' if found.segments == 1 else 's'}, {found.bytes:,} bytes, "
            f"{found.index_entries:,} index entries",
            flush=True,
        )
        for problem in found.problems:
            print(f"  {problem['file']} at byte {problem['position']}: {problem['text']}")
    return not found.problems


def _directories(home: Path, asked: list[str]) -> list[str]:
    from shmbroker.log.names import split_directory

    there = sorted(d.name for d in home.iterdir() if d.is_dir() and split_directory(d.name)[1] >= 0)
    for name in asked:
        if name not in there:
            raise typer.BadParameter(
                f"{name!r} is no partition in {home}; there are: {', '.join(there[:10]) or 'none'}"
            )
    return asked or there


@app.command()
def repair(
    partitions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TOPIC-PARTITION]...", help="May be repeated, else all."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; else only say.")] = False,
    json: Json = False,
    instance: Instance = None,
    data_dir: DataDir = None,
) -> None:
    """Say what repairing damaged partitions would lose, and with --yes cut there.

    The broker must be down. Without --yes nothing is changed, and damage ends with exit code 5.

    Example: shmbroker log repair ticks-0 --yes
    """
    where = places(instance, data_dir)
    from shmbroker.control.datadir import lock_exclusive, open_data_dir

    if not where.data_dir.is_dir():
        raise typer.BadParameter(f"{where.data_dir} does not exist", param_hint="--data-dir")
    with lock_exclusive(where.data_dir, timeout_s=5.0):
        directory = open_data_dir(where.data_dir, create=False)
        _refuse_leftover_rings(directory.shm_prefix, directory.data_dir_id)
        chosen = list(_chosen(directory.meta_path, partitions or []))
        if not _repair(where.data_dir, chosen, yes, json):
            print("nothing was changed; repair with --yes", file=sys.stderr)
            raise typer.Exit(5)


def _repair(data_dir: Path, chosen: list[tuple[str, str, int]], yes: bool, json: bool) -> bool:
    """False: something is to be done, and nobody said yes."""
    from shmbroker.log.repair import execute, plan_repair

    undone = False
    for name, topic_id, partition in chosen:
        directory = data_dir / name
        if not directory.is_dir() or not any(directory.glob("*.log")):
            continue  # never written to
        plan = plan_repair(str(directory))
        if json:
            _print_json(asdict(plan))
        else:
            print(plan.describe())
        if plan.needed and yes:
            execute(plan, topic_id, partition)
            if not json:
                print(f"{directory}: repaired; it ends at offset {plan.end_offset} now")
        undone |= plan.needed and not yes
    return not undone


def _chosen(meta_path: Path, names: list[str]) -> Iterator[tuple[str, str, int]]:
    """Name, topic id and number of each partition asked for."""
    from shmbroker.control.meta import MetaStore

    store = MetaStore(meta_path)
    try:
        known = {
            f"{topic.name}-{partition}": (topic.topic_id, partition)
            for topic in store.topics()
            for partition in range(topic.partitions)
        }
    finally:
        store.close()
    for name in names or sorted(known):
        if name not in known:
            raise typer.BadParameter(
                f"{name!r} is no partition of this data directory; there are: "
                f"{', '.join(sorted(known)[:10]) or 'none'}"
            )
        yield name, *known[name]


def _refuse_leftover_rings(prefix: str, data_dir_id: str) -> None:
    """Rings of a killed broker may hold records that are on no disk yet."""
    from shmbroker._core import shm
    from shmbroker.control.sharedmem import boot_id

    ours = shm.list_ours(prefix, boot_id(), bytes.fromhex(data_dir_id))
    if any(kind == shm.KIND_WRITER for kind, _, _ in ours.values()):
        raise errors.ShmbrokerError(
            "the last broker was killed and its rings are still in /dev/shm; let a broker take "
            "them over and end in order first: shmbroker up --detach; shmbroker down"
        )


def _durable_limit(path: Path, instance: str | None) -> int | None:
    """Where a running broker's durable end lies in `path`, or in its last segment; None without."""
    path = path.resolve()
    directory, base = (path, None) if path.is_dir() else (path.parent, path.stem)
    _, limits = _live(instance, None)
    limit = limits.get(directory)
    segments = sorted(int(file.stem) for file in directory.glob("*.log"))
    if limit is None or not segments:
        return None
    asked = int(base) if base is not None and base.isdecimal() else segments[-1]
    if asked < limit[0]:
        return None
    return 0 if asked > limit[0] else max(0, limit[1])


def _live(
    instance: str | None, data_dir: Path | None
) -> tuple[Path | None, dict[Path, tuple[int, int]]]:
    """A running broker's data directory, and its partitions' durable ends: (base offset of a
    segment, position in it). (None, {}) where none answers."""
    try:
        client = connect(instance, data_dir, 1.0, here=True)
    except errors.ShmbrokerError:
        return None, {}
    try:
        found: list[Mapping[str, Any]] = client.status()["partitions"]
        home = client.connection.attachment.data_dir.resolve()
    finally:
        client.close()
    return home, {
        home / f"{at['topic']}-{at['partition']}": (
            at["flush_base_offset"],
            at["durable_position"] - at["flush_base_position"],
        )
        for at in found
        if "flush_base_offset" in at
    }


def _print_json(value: Mapping[str, Any]) -> None:
    import orjson

    line = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE, default=str)
    sys.stdout.buffer.write(line)


def _text(item: Mapping[str, Any]) -> str:
    name = Path(item["file"]).name
    rest = (f"{key}={value}" for key, value in item.items() if key not in ("kind", "file"))
    return f"{name} {item['kind']}: {' '.join(rest)}"

"""`produce` and `consume`: lines in, records out."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from shmbroker.cli.options import DataDir, Instance, Timeout, connect

if TYPE_CHECKING:
    from shmbroker.client import Client

_LINES_A_BATCH = 5_000
_BATCHES_IN_FLIGHT = 16


def produce(
    topic: str,
    file: Annotated[
        Path | None, typer.Argument(help="Else standard input.", show_default=False)
    ] = None,
    key_separator: Annotated[
        str | None, typer.Option("--key-separator", help="What stands before it is the key.")
    ] = None,
    partition: Annotated[int | None, typer.Option("--partition", help="Else by key.")] = None,
    acks: Annotated[
        Literal["durable", "memory", "none"], typer.Option("--acks", help="When a line counts.")
    ] = "durable",
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:
    """Send each line of a file or of standard input as a record.

    Example: printf 'AAPL:1\\nMSFT:2\\n' | shmbroker produce ticks --key-separator :
    """
    if file is not None and not file.is_file() and not file.is_fifo():
        raise typer.BadParameter(f"{file} is no file that can be read", param_hint="FILE")
    separator = key_separator.encode() if key_separator is not None else None
    if separator == b"":
        raise typer.BadParameter("must not be empty", param_hint="--key-separator")
    client = connect(instance, data_dir, timeout)
    try:
        lines = file.open("rb") if file is not None else sys.stdin.buffer
        with lines, client.producer(acks=acks) as producer:
            sent = _send(producer, topic, lines, separator, partition)
    finally:
        client.close()
    print(f"{sent} record{'' if sent == 1 else 's'} sent to {topic}", file=sys.stderr)


def _send(
    producer: Any, topic: str, lines: BinaryIO, separator: bytes | None, partition: int | None
) -> int:
    waiting: deque[Any] = deque()
    sent = 0
    for batch in _batches(lines):
        keys: list[bytes | None] | None = None
        if separator is not None:
            keys, values = [], []
            for line in batch:
                key, found, value = line.partition(separator)
                keys.append(key if found else None)
                values.append(value if found else line)
            batch = values
        waiting.append(producer.send_many(topic, batch, keys=keys, partition=partition))
        sent += len(batch)
        if len(waiting) > _BATCHES_IN_FLIGHT:
            waiting.popleft().result()
    for receipt in waiting:
        receipt.result()
    return sent


def _batches(lines: BinaryIO) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for line in lines:
        batch.append(line.removesuffix(b"\n"))
        if len(batch) == _LINES_A_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def consume(
    topic: str,
    start: Annotated[
        str, typer.Option("--from", metavar="earliest|latest|OFFSET|ISO-TIME", help="Where.")
    ] = "latest",
    exit_at_end: Annotated[
        bool, typer.Option("--exit-at-end", help="Stop where the topic ended at the start.")
    ] = False,
    most: Annotated[int | None, typer.Option("--max", min=0, help="Stop after so many.")] = None,
    form: Annotated[
        Literal["value", "json"], typer.Option("--format", help="Of a line.")
    ] = "value",
    partition: Annotated[int | None, typer.Option("--partition", help="Only this one.")] = None,
    isolation: Annotated[
        Literal["durable", "appended"], typer.Option("--isolation", help="What is seen.")
    ] = "durable",
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:
    """Print the records of a topic, one a line.

    Example: shmbroker consume ticks --from earliest --exit-at-end --format json
    """
    begin = _start(start)
    client = connect(instance, data_dir, timeout)
    try:
        only = None if partition is None else [partition]
        with client.consumer(topic, partitions=only, start=begin, isolation=isolation) as consumer:
            ends = _ends(client, topic, partition, isolation) if exit_at_end else None
            _print(consumer, ends, begin, most, form)
    finally:
        client.close()


def _start(text: str) -> Any:
    if text in ("earliest", "latest"):
        return text
    if text.isdecimal():
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}; allowed: earliest, latest, an offset, or a time like 2026-01-31T12:00",
            param_hint="--from",
        ) from None
    return at if at.tzinfo is not None else at.astimezone()


def _ends(client: Client, topic: str, partition: int | None, isolation: str) -> dict[int, int]:
    """Partition -> exclusive end, of those that hold anything."""
    field = "durable_offset" if isolation == "durable" else "log_end_offset"
    return {
        p["partition"]: p[field]
        for p in client.status()["partitions"]
        if p["topic"] == topic
        and partition in (None, p["partition"])
        and p[field] > p["log_start_offset"]
    }


def _print(
    consumer: Any, ends: dict[int, int] | None, begin: Any, most: int | None, form: str
) -> None:
    left = most if most is not None else -1
    if isinstance(begin, int) and ends:
        ends = {p: end for p, end in ends.items() if end > begin}
    if left == 0 or (ends is not None and (not ends or begin == "latest")):
        return
    out = sys.stdout.buffer
    write = _line if form == "value" else _json_line
    for batch in consumer.batches(timeout=None if ends is None else 1.0):
        for record in batch.records():
            if ends is not None and record.offset >= ends.get(record.partition, 0):
                ends.pop(record.partition, None)
                continue
            out.write(write(record))
            left -= 1
            if left == 0:
                break
            if ends is not None and record.offset + 1 >= ends[record.partition]:
                del ends[record.partition]
        out.flush()
        if left == 0 or ends == {}:
            return


def _line(record: Any) -> bytes:
    return (bytes(record.value) if record.value is not None else b"") + b"\n"


def _json_line(record: Any) -> bytes:
    import orjson

    line: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
    }
    line |= _field("key", record.key) | _field("value", record.value)
    if record.headers:
        line["headers"] = [{"name": n, **_field("value", v)} for n, v in record.headers]
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _field(name: str, data: bytes | None) -> dict[str, Any]:
    """Text where it is text, otherwise base64 under a name that says so."""
    if data is None:
        return {name: None}
    try:
        return {name: bytes(data).decode()}
    except UnicodeDecodeError:
        import base64

        return {f"{name}_base64": base64.b64encode(data).decode()}

"""`topic create|list|describe|delete`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from shmbroker.cli.options import DataDir, Instance, Json, Timeout, connect

app = typer.Typer(help="Make, list, describe and delete topics.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="1 to 249 of a-z A-Z 0-9 . _ -")],
    partitions: Annotated[int, typer.Option("--partitions", "-p", help="How many.")] = 1,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", "-c", metavar="KEY=VALUE", help="Kafka's name; may be repeated."),
    ] = None,
    if_not_exists: Annotated[
        bool, typer.Option("--if-not-exists", help="A topic of that name is fine.")
    ] = False,
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:
    """Make a topic; returns when every partition takes records.

    Example: shmbroker topic create ticks --partitions 4 --config retention.ms=7d
    """
    settings: dict[str, Any] = {}
    for given in config or ():
        key, equals, value = given.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{given!r} is not KEY=VALUE", param_hint="--config")
        settings[key] = value
    client = connect(instance, data_dir, timeout)
    try:
        made = client.create_topic(name, partitions, settings, if_not_exists)
    finally:
        client.close()
    print(f"topic {name!r}: {_count(len(made.partitions))}")


@app.command("list")
def list_(
    instance: Instance = None, data_dir: DataDir = None, json: Json = False, timeout: Timeout = 5.0
) -> None:
    """List the topics.

    Example: shmbroker topic list
    """
    client = connect(instance, data_dir, timeout)
    try:
        topics = [client.describe_topic(name) for name in client.topics()]
    finally:
        client.close()
    for topic in topics:
        if json:
            _print_json({"name": topic.name, "id": topic.id, "partitions": len(topic.partitions)})
        else:
            print(f"{topic.name}\t{_count(len(topic.partitions))}")


@app.command()
def describe(
    name: str,
    instance: Instance = None,
    data_dir: DataDir = None,
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Show a topic's settings and where its partitions are.

    Example: shmbroker topic describe ticks
    """
    client = connect(instance, data_dir, timeout)
    try:
        topic = client.describe_topic(name)
        found = client.status()["partitions"]
    finally:
        client.close()
    states = {p["partition"]: p for p in found if p["topic"] == name}
    fields = ("log_start_offset", "durable_offset", "log_end_offset", "state", "reason")
    partitions = [
        {"partition": p.partition, "writer": p.writer, "directory": p.directory}
        | {field: states.get(p.partition, {}).get(field) for field in fields}
        for p in topic.partitions
    ]
    if json:
        _print_json({"name": topic.name, "id": topic.id, "config": dict(topic.config),
                     "partitions": partitions})  # fmt: skip
        return
    print(f"topic {topic.name} (id {topic.id}), {_count(len(partitions))}")
    for key, value in topic.config.items():
        print(f"  {key} = {value}")
    for p in partitions:
        state = f"{p['state']} {p['reason'] or ''}".rstrip()
        print(
            f"  partition {p['partition']}: writer {p['writer']}, offsets {p['log_start_offset']} "
            f"to {p['log_end_offset']} (durable below {p['durable_offset']}), {state}, "
            f"{p['directory']}"
        )


@app.command()
def delete(
    name: str,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:
    """Delete a topic and its records.

    Example: shmbroker topic delete ticks --yes
    """
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("nobody to ask: standard input is no terminal; use --yes")
        typer.confirm(f"delete topic {name!r} with all its records?", abort=True, err=True)
    client = connect(instance, data_dir, timeout)
    try:
        client.delete_topic(name)
    finally:
        client.close()
    print(f"topic {name!r} is deleted")


def _count(partitions: int) -> str:
    return f"{partitions} partition" + ("" if partitions == 1 else "s")


def _print_json(value: Any) -> None:
    import orjson

    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()

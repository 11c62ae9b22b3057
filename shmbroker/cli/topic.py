"""`topic create|list|describe|alter|trim|delete`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from shmbroker.cli.options import DataDir, Instance, Json, Timeout, TopicName, ask, connect
from shmbroker.cli.tables import print_json, print_table

app = typer.Typer(help="Make, list, describe, alter, trim and delete topics.", no_args_is_help=True)

Config = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="KEY=VALUE",
        help="A setting by Kafka's name; may be repeated. Units: 7d, 12h, 500ms; 512MiB, 64KiB.",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="1 to 249 of a-z A-Z 0-9 . _ -")],
    partitions: Annotated[int, typer.Option("--partitions", "-p", min=1, help="How many.")] = 1,
    config: Config = None,
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
    settings = _settings(config)
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
    """List the topics; --json: one object a line.

    Example: shmbroker topic list --json | jq -r .name
    """
    client = connect(instance, data_dir, timeout)
    try:
        topics = client.metadata.all()
    finally:
        client.close()
    for name, topic in sorted(topics.items()):
        if json:
            print_json({"name": name, "id": topic.id, "partitions": len(topic.partitions)})
        else:
            print(f"{name}\t{_count(len(topic.partitions))}")


@app.command()
def describe(
    name: TopicName,
    instance: Instance = None,
    data_dir: DataDir = None,
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Show a topic's settings and where its partitions are; --json: one object.

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
        print_json({"name": topic.name, "id": topic.id, "config": dict(topic.config),
                     "partitions": partitions})  # fmt: skip
        return
    print(f"topic {topic.name} (id {topic.id}), {_count(len(partitions))}")
    for key, value in topic.config.items():
        print(f"  {key} = {value}{_in_words(key, value)}")
    print_table(
        ["partition", "writer", "start", "durable below", "end", "state"],
        [
            [p["partition"], p["writer"], *(p[field] for field in fields[:3]),
             f"{p['state']} {p['reason'] or ''}".rstrip()]
            for p in partitions
        ],
    )  # fmt: skip


@app.command()
def alter(
    name: TopicName,
    config: Config = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(
            "--unset", metavar="KEY", help="Back to the broker's default; may be repeated.",
            show_default=False,
        ),
    ] = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            "--partitions", "-p", min=1, show_default=False,
            help="How many there shall be, never fewer than there are; else as many as now.",
        ),
    ] = None,
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:  # fmt: skip
    """Change a topic's settings, or give it more partitions, while it is in use.

    Records with a key go by the new number of partitions from then on.

    Example: shmbroker topic alter ticks --config retention.ms=12h --unset segment.bytes -p 8
    """
    changes = _settings(config) | dict.fromkeys(unset or ())
    if not changes and partitions is None:
        raise typer.BadParameter("nothing to alter: use --config, --unset or --partitions")
    client = connect(instance, data_dir, timeout)
    try:
        topic = client.alter_topic(name, changes, partitions)
    finally:
        client.close()
    print(f"topic {name!r}: {_count(len(topic.partitions))}")
    for key in changes:
        print(f"  {key} = {topic.config[key]}{_in_words(key, topic.config[key])}")


@app.command()
def trim(
    name: TopicName,
    before: Annotated[
        str,
        typer.Option(
            "--before", metavar="OFFSET|latest", help="The first offset that is kept, or latest: "
            "all that is on stable storage goes.", show_default=False,
        ),
    ],
    partition: Annotated[
        list[int] | None,
        typer.Option(
            "--partition", min=0, help="Its number; may be repeated.", show_default="all"
        ),
    ] = None,
    yes: Yes = False,
    instance: Instance = None,
    data_dir: DataDir = None,
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:  # fmt: skip
    """Delete a topic's oldest records: those below an offset.

    Prints where each log starts then; --json: one object a line.

    Example: shmbroker topic trim ticks --before 1000000 --partition 0 --yes
    """
    if before != "latest" and not before.isdecimal():
        raise typer.BadParameter(
            f"{before!r} is neither an offset nor latest", param_hint="--before"
        )
    where = "every partition" if not partition else f"partition {', '.join(map(str, partition))}"
    ask(f"delete the records below {before} of topic {name!r}, {where}?", yes)
    client = connect(instance, data_dir, timeout)
    try:
        numbers = partition or [p.partition for p in client.describe_topic(name).partitions]
        starts = client.delete_records(
            name, {n: "latest" if before == "latest" else int(before) for n in numbers}
        )
    finally:
        client.close()
    for number, start in sorted(starts.items()):
        if json:
            print_json({"topic": name, "partition": number, "log_start_offset": start})
        else:
            print(f"{name}-{number} starts at offset {start}")


@app.command()
def delete(
    name: TopicName,
    yes: Yes = False,
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:
    """Delete a topic and its records.

    Example: shmbroker topic delete ticks --yes
    """
    ask(f"delete topic {name!r} with all its records?", yes)
    client = connect(instance, data_dir, timeout)
    try:
        client.delete_topic(name)
    finally:
        client.close()
    print(f"topic {name!r} is deleted")


def _settings(given: list[str] | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for entry in given or ():
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{entry!r} is not KEY=VALUE", param_hint="--config")
        settings[key] = value
    return settings


def _in_words(key: str, value: Any) -> str:
    """ " (7d)" where a person would write the number so."""
    from shmbroker.topic_settings import TOPIC_RULES

    words = TOPIC_RULES[key].format(value) if key in TOPIC_RULES else str(value)
    if value == -1:
        return " (no limit)"
    return f" ({words})" if words != str(value) else ""


def _count(partitions: int) -> str:
    return f"{partitions} partition" + ("" if partitions == 1 else "s")

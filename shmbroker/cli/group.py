"""`group list|describe|reset|delete|delete-offsets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shmbroker.cli.options import DataDir, Instance, Json, Timeout, ask, connect
from shmbroker.cli.places import place_of
from shmbroker.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shmbroker.client.group_admin import GroupInfo, ResetPartition

app = typer.Typer(
    help="Consumer groups: what they have read, and from where on.", no_args_is_help=True
)

GroupName = Annotated[str, typer.Argument(help="Name of a group.", show_default=False)]
Topics = Annotated[
    list[str] | None,
    typer.Option(
        "--topic",
        metavar="TOPIC[:N,N…]",
        help="A topic, or some of its partitions; may be repeated.",
        show_default="all that the group has committed for",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


@app.command("list")
def list_(
    instance: Instance = None, data_dir: DataDir = None, json: Json = False, timeout: Timeout = 5.0
) -> None:
    """List the groups; --json: one object a line.

    Example: shmbroker group list
    """
    client = connect(instance, data_dir, timeout)
    try:
        groups = client.groups()
    finally:
        client.close()
    if json:
        for g in groups:
            print_json({"group": g.group, "state": g.state, "members": g.members,
                        "topics": list(g.topics)})  # fmt: skip
    elif groups:
        print_table(
            ["members", "state", "group"],
            [[g.members, g.state, f"{g.group}  ({', '.join(g.topics)})"] for g in groups],
        )


@app.command()
def describe(
    name: GroupName,
    instance: Instance = None,
    data_dir: DataDir = None,
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Show a group's members, what each has, and how far the group is behind; --json: one object.

    Example: shmbroker group describe billing
    """
    import dataclasses

    client = connect(instance, data_dir, timeout)
    try:
        group = client.describe_group(name)
    finally:
        client.close()
    if json:
        print_json(dataclasses.asdict(group) | {"lag": group.lag, "lag_ms": group.lag_ms})
        return
    members = _count(len(group.members), "member")
    print(f"group {group.group}: {group.state}, epoch {group.epoch}, assignor {group.assignor}, "
          f"{members}, lag {_lag(group.lag, group.lag_ms)}")  # fmt: skip
    for member in group.members:
        static = f", instance {member.instance_id}" if member.instance_id else ""
        print(f"  {member.member_id} {member.name}{static}{' (away)' if member.away else ''}: "
              f"{_held(member.has)}")  # fmt: skip
        for what, held in (("gives up", member.gives_up), ("waits for", member.waits_for)):
            if held:
                print(f"    {what} {_held(held)}")
    _print_partitions(group)


@app.command()
def reset(
    name: GroupName,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="WHERE",
            help="earliest, latest, an offset, -N (N records before each end), or a time like "
            "2026-01-31T12:00, local unless it names its zone.",
            show_default=False,
        ),
    ],
    topic: Topics = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would become of it.")
    ] = False,
    yes: Yes = False,
    instance: Instance = None,
    data_dir: DataDir = None,
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Have a group read on from somewhere else; shows what becomes of it, then asks.

    Refused while the group has members: end them first, or wait until their sessions have ended.

    Example: shmbroker group reset billing --topic orders --to 2026-01-31T12:00
    """
    place, topics = place_of(to, "--to", words=("earliest", "latest")), _topics(topic)
    client = connect(instance, data_dir, timeout)
    try:
        plan = client.reset_group(name, place, topics, dry_run=True)
        if dry_run or not json:
            _print_plan(plan, json)
        if not dry_run:
            if plan:
                ask(f"move group {name!r} so?", yes)
            done = client.reset_group(name, place, topics)
            if json:
                _print_plan(done, json)
            else:
                print(f"group {name!r}: {_count(len(done), 'partition')} moved")
    finally:
        client.close()


@app.command()
def delete(
    name: GroupName,
    yes: Yes = False,
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:
    """Forget a group without members, and all that it has committed.

    Example: shmbroker group delete billing --yes
    """
    ask(f"delete group {name!r} with all its offsets?", yes)
    client = connect(instance, data_dir, timeout)
    try:
        client.delete_group(name)
    finally:
        client.close()
    print(f"group {name!r} is deleted")


@app.command("delete-offsets")
def delete_offsets(
    name: GroupName,
    topic: Topics = None,
    yes: Yes = False,
    instance: Instance = None,
    data_dir: DataDir = None,
    timeout: Timeout = 5.0,
) -> None:
    """Forget what a group has committed for topics that none of its members reads.

    Example: shmbroker group delete-offsets billing --topic orders:0,1 --yes
    """
    topics = _topics(topic)
    if topics is None:
        raise typer.BadParameter(
            "say of which, or use: shmbroker group delete", param_hint="--topic"
        )
    ask(f"delete what group {name!r} has committed for {', '.join(topics)}?", yes)
    client = connect(instance, data_dir, timeout)
    try:
        client.delete_group_offsets(name, topics)
    finally:
        client.close()
    print(f"group {name!r}: its offsets of {', '.join(topics)} are deleted")


def _topics(given: list[str] | None) -> dict[str, list[int] | None] | None:
    found: dict[str, list[int] | None] = {}
    for entry in given or ():
        name, colon, numbers = entry.partition(":")
        words = numbers.split(",") if colon else []
        if not name or not all(word.isdecimal() for word in words):
            raise typer.BadParameter(f"{entry!r} is not TOPIC or TOPIC:0,1", param_hint="--topic")
        found[name] = [int(word) for word in words] if colon else None
    return found or None


def _print_partitions(group: GroupInfo) -> None:
    if not group.partitions:
        return
    print_table(
        ["committed", "end", "lag", "behind", "partition"],
        [
            [
                "-" if p.committed is None else p.committed,
                "-" if p.high_watermark is None else p.high_watermark,
                "-" if p.lag is None else p.lag,
                _age(p.lag_ms),
                f"{p.topic}-{p.partition}  {p.member_id or 'nobody'}"
                + (f"  {p.metadata!r}" if p.metadata else ""),
            ]
            for p in group.partitions
        ],
    )


def _print_plan(plan: Sequence[ResetPartition], json: bool) -> None:
    if json:
        for line in plan:
            print_json({name: getattr(line, name) for name in line.__slots__})
        return
    if not plan:
        print("the group has committed for nothing of that: nothing is moved")
        return
    print_table(
        ["before", "after", "lag before", "lag after", "partition"],
        [
            [
                "-" if line.before is None else line.before,
                line.after,
                line.lag_before,
                line.lag_after,
                f"{line.topic}-{line.partition}"
                + ("  (the nearest that there is)" if line.capped else ""),
            ]
            for line in plan
        ],
    )


def _held(held: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{t}-{n}" for t, numbers in held.items() for n in numbers) or "nothing"


def _lag(records: int, age_ms: int | None) -> str:
    return f"{_count(records, 'record')} ({_age(age_ms)})" if records else "none"


def _age(age_ms: int | None) -> str:
    return "-" if age_ms is None else f"{age_ms / 1000:.3g} s"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

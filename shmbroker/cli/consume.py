"""`consume`: records out, as lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shmbroker.cli.line_blocks import one_byte
from shmbroker.cli.options import DataDir, Instance, TopicName, connect
from shmbroker.cli.places import place_of

if TYPE_CHECKING:
    from shmbroker._core.batch import Record

_ATTACH_S = 5.0


def consume(
    topic: TopicName,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="WHERE",
            help="earliest, latest, an offset (of one partition), -N (N records before each end), "
            "or a time like 2026-01-31T12:00, local unless it names its zone; else latest, and "
            "where a group has committed nothing, earliest.",
            show_default=False,
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            "-g",
            help="Read as a member of this group, and commit what was printed; else for oneself.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="WHERE", help="Stop before this offset or time, else never."),
    ] = None,
    partition: Annotated[
        int | None,
        typer.Option("--partition", "-p", min=0, help="The number of the only one, else all."),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--max", "-n", min=0, help="Stop after so many records, else never."),
    ] = None,
    exit_at_end: Annotated[
        bool, typer.Option("--exit-at-end", "-e", help="Stop where the topic ended at the start.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0,
            metavar="SECONDS",
            help="Stop with exit code 4 after so many without a record, else never.",
        ),
    ] = None,
    isolation: Annotated[
        Literal["durable", "appended"],
        typer.Option("--isolation", help="See what is on stable storage, or all that is appended."),
    ] = "durable",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="FORM",
            help="Of a line: value, json, or a template like '{offset} {key}: {value}' with the "
            "fields topic, partition, offset, timestamp (ms), key, value, headers.",
        ),
    ] = "value",
    delimiter: Annotated[
        str, typer.Option("--delimiter", "-D", help="The byte that ends a line.")
    ] = r"\n",
    instance: Instance = None,
    data_dir: DataDir = None,
) -> None:
    r"""Print the records of a topic, one a line.

    Values are printed as they are, tombstones as empty lines; where values may hold line ends, use
    --delimiter '\0' or --format json, which `shmbroker produce --format json` takes back.

    With --group, members share the topic's partitions; what was
    not committed when one died is printed again by another.

    Example: shmbroker consume ticks --from earliest --exit-at-end --format '{key} {value}'
    """  # fmt: skip
    from shmbroker.cli.consuming import Consuming

    if group is not None:
        _check_group(start, to, partition, exit_at_end)
    start = start or ("latest" if group is None else "earliest")
    begin = place_of(start, "--from", words=("earliest", "latest"))
    stop = None if to is None else place_of(to, "--to", below_end=False)
    line, ends = _line_maker(form), _delimiter(delimiter)
    attach_s = _ATTACH_S if timeout is None else min(timeout, _ATTACH_S)
    client = connect(instance, data_dir, attach_s)
    try:
        if group is not None:
            first: Any = begin
            with client.consumer(
                topic,
                group=group,
                start=first,
                isolation=isolation,
            ) as member:
                Consuming(member, line, ends, most=most, silence_s=timeout).run_and_commit(member)
            return
        only = _partitions(len(client.describe_topic(topic).partitions), partition, start, to)
        with client.consumer(
            topic, partitions=only, start="latest", isolation=isolation
        ) as consumer:
            run = Consuming(consumer, line, ends, most=most, silence_s=timeout)
            run.begin_at(begin)
            run.stop_at(stop, exit_at_end=exit_at_end)
            run.run()
    finally:
        client.close()


def _check_group(start: str | None, to: str | None, partition: int | None, at_end: bool) -> None:
    """A group says itself what its members read, and from where on."""
    given = (("--to", to), ("--partition", partition), ("--exit-at-end", at_end or None))
    for option, value in given:
        if value is not None:
            raise typer.BadParameter("not for a member of a group", param_hint=option)
    if start is not None and re.fullmatch(r"-?[0-9]+", start):
        raise typer.BadParameter(
            "a group begins where it has committed, else at earliest, latest or a time; move it "
            "with: shmbroker group reset",
            param_hint="--from",
        )


def _partitions(count: int, partition: int | None, start: str, to: str | None) -> list[int] | None:
    """The consumer's partitions; one offset is for one partition."""
    if partition is not None:
        return [partition]
    for option, text in (("--from", start), ("--to", to)):
        if text is not None and text.isdecimal() and count > 1:
            raise typer.BadParameter(
                f"{text} is one offset for {count} partitions: say which with --partition",
                param_hint=option,
            )
    return None


def _line_maker(form: str) -> Callable[[Record], bytes] | None:
    """None: values alone, which need no records."""
    if form == "value":
        return None
    if form == "json":
        from shmbroker.cli.record_json import to_json

        return to_json
    if "{" not in form:
        raise typer.BadParameter(
            f"{form!r} is none; allowed: value, json, or a template with {{fields}}",
            param_hint="--format",
        )
    from shmbroker.cli.template import compile_template

    try:
        return compile_template(form)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--format") from None


def _delimiter(given: str) -> bytes:
    try:
        return one_byte(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--delimiter") from None

"""`shmbroker group …` and `consume --group`, as an operator types them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from waiting import eventually

from shmbroker import errors

COUNT = 20


@pytest.fixture
def client(broker: Any) -> Iterator[Any]:
    with broker.client() as made:
        made.create_topic("orders", partitions=2)
        with made.producer() as producer:
            for n in range(COUNT):
                producer.send("orders", b"%d" % n, partition=n % 2)
            producer.flush()
        yield made


def read(client: Any, count: int, group: str = "billing") -> None:
    """So much is read and committed by a member that goes again."""
    with client.consumer("orders", group=group) as consumer:
        for _ in range(count):
            assert consumer.poll(20) is not None
        consumer.commit()


def said(broker: Any, *words: str) -> str:
    done = broker.run(*words)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def rows(broker: Any, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said(broker, *words, "--json").splitlines()]


def test_groups_are_listed_and_described_with_their_lag(broker: Any, client: Any) -> None:
    assert said(broker, "group", "list") == ""
    read(client, COUNT)
    with client.consumer("orders", group="live", start="latest") as live:
        eventually(lambda: (live.poll(0), len(live.assignment()) == 2)[1], live.assignment)
        listed = {g["group"]: g for g in rows(broker, "group", "list")}
        assert listed["billing"] == {
            "group": "billing", "state": "empty", "members": 0, "topics": ["orders"]
        }  # fmt: skip
        assert listed["live"]["members"] == 1
        assert "billing  (orders)" in said(broker, "group", "list")
        (live_now,) = rows(broker, "group", "describe", "live")
        assert live_now["state"] == "stable"
        assert [m["has"] for m in live_now["members"]] == [{"orders": [0, 1]}]
        assert {p["member_id"] for p in live_now["partitions"]} == {live.member_id}
        text = said(broker, "group", "describe", "live")
        assert live.member_id in text
        assert "orders-1" in text
    (before,) = rows(broker, "group", "describe", "billing")
    assert (before["lag"], before["lag_ms"]) == (0, 0)
    with client.producer() as producer:
        producer.send("orders", b"late", partition=1)
        producer.flush()
    (after,) = rows(broker, "group", "describe", "billing")
    assert after["lag"] == 1
    assert after["lag_ms"] > 0
    assert client.describe_group("billing").lag == 1
    absent = broker.run("group", "describe", "absent")
    assert absent.returncode == 1
    assert "shmbroker group list" in absent.stderr


@pytest.mark.parametrize(
    ("to", "after"),
    [("earliest", 0), ("latest", 10), ("3", 3), ("-4", 6), ("2000-01-01", 0), ("2100-01-01", 10),
     ("99", 10)],
)  # fmt: skip
def test_a_reset_shows_its_plan_and_then_does_it(
    broker: Any, client: Any, to: str, after: int
) -> None:
    read(client, COUNT)
    words = ("group", "reset", "billing", "--topic", "orders:1", "--to", to)
    (plan,) = rows(broker, *words, "--dry-run")
    assert (plan["partition"], plan["before"], plan["after"]) == (1, 10, after)
    assert plan["capped"] == (to == "99")
    (unmoved,) = rows(broker, "group", "describe", "billing")
    assert [p["committed"] for p in unmoved["partitions"]] == [10, 10]
    asked = broker.run(*words)  # nobody is there to be asked
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    assert "1 partition moved" in said(broker, *words, "--yes")
    (moved,) = rows(broker, "group", "describe", "billing")
    assert [p["committed"] for p in moved["partitions"]] == [10, after]


def test_a_reset_is_refused_while_members_are_there(broker: Any, client: Any) -> None:
    read(client, COUNT)
    with client.consumer("orders", group="billing"):
        words = ("group", "reset", "billing", "--to", "earliest", "--yes")
        refused = broker.run(*words)
        assert refused.returncode == 1
        assert "end them" in refused.stderr
        with pytest.raises(errors.GroupNotEmpty):
            client.delete_group("billing")
    assert "2 partitions moved" in said(broker, *words)


def test_groups_and_offsets_are_deleted(broker: Any, client: Any) -> None:
    read(client, COUNT)
    assert said(broker, "group", "delete-offsets", "billing", "--topic", "orders:0", "--yes")
    (left,) = rows(broker, "group", "describe", "billing")
    assert [p["partition"] for p in left["partitions"] if p["committed"] is not None] == [1]
    assert said(broker, "group", "delete", "billing", "--yes")
    assert client.groups() == []
    assert broker.run("group", "delete", "billing", "--yes").returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        ("group", "reset", "g"),
        ("group", "reset", "g", "--to", "sometime"),
        ("group", "reset", "g", "--to", "1", "--topic", "t:x"),
        ("group", "delete-offsets", "g", "--yes"),
        ("consume", "t", "--group", "g", "--to", "5"),
        ("consume", "t", "--group", "g", "--partition", "0"),
        ("consume", "t", "--group", "g", "--from", "5"),
        ("consume", "t", "--group", "g", "--exit-at-end"),
    ],
)
def test_words_that_make_no_sense_are_usage(broker: Any, words: tuple[str, ...]) -> None:
    done = broker.run(*words)
    assert done.returncode == 2, done.stderr


def test_consume_commits_what_it_printed(broker: Any, client: Any) -> None:
    words = ("consume", "orders", "--group", "cli")
    first = said(broker, *words, "--max", "7").split()
    rest = broker.run(*words, "--timeout", "0.5")
    assert rest.returncode == 4
    assert sorted(map(int, first + rest.stdout.split())) == list(range(COUNT))
    assert client.describe_group("cli").lag == 0


def test_consume_in_a_group_commits_and_leaves_at_ctrl_c(broker: Any, client: Any) -> None:
    command = [sys.executable, "-m", "shmbroker.cli.main", "consume", "orders", "-g", "cli"]
    with subprocess.Popen(command, env=broker.env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(COUNT)]
        assert all(lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    group = client.describe_group("cli")
    assert (group.lag, group.members) == (0, ())

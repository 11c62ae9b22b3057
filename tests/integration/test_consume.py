"""Consuming from a real broker."""

from __future__ import annotations

from typing import Any as Broker


def test_up(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("t")
        print(client.status())

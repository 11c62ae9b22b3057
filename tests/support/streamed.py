"""Clients of a real broker whose records come from its reader process."""

from __future__ import annotations

import json
from typing import Any

import zmq

from shmbroker.client.client import Client
from shmbroker.client.remote.data_port import DataPort
from shmbroker.errors import BrokerGone, from_wire
from shmbroker.perf.streamed import StreamedConnection

#: What a broker's configuration must say for that.
LISTENING = '[listen]\naddress = "tcp://127.0.0.1:0"\n'


def data_port(broker: Any) -> DataPort:
    """Where its reader listens now, by a hello of our own."""
    try:
        told = json.loads((broker.places.runtime_dir / "broker.json").read_text())["listen"]
        token = (broker.places.runtime_dir / "token").read_text().strip()
    except (OSError, KeyError) as error:
        raise BrokerGone(f"not yet: {error}") from None
    hello = {"v": 1, "id": 1, "op": "hello", "min": 1, "max": 1, "token": token, "name": "a test"}
    with zmq.Context() as context, context.socket(zmq.DEALER) as control:
        control.linger = 0
        control.connect(told["control"][0])
        control.send(json.dumps(hello).encode())
        if not control.poll(1000):
            raise BrokerGone("control does not answer")
        answer = json.loads(control.recv())
    if "error" in answer:  # it is only coming up
        raise from_wire(answer["error"])
    said = answer["ok"]
    return DataPort(
        tuple(said["data"]),
        said["data_token"].encode(),
        bytes.fromhex(said["data_dir_id"]),
        said.get("data_certificate"),
        "a test",
    )


def connect_streamed(broker: Any, **options: Any) -> Client:
    """A client of it in this process; its consumers read streams."""
    return Client(StreamedConnection(broker.places, lambda: data_port(broker), **options))


__all__ = ["LISTENING", "connect_streamed", "data_port"]

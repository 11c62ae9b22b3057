"""Remote clients of a broker of the test's own."""

from __future__ import annotations

import json
from typing import Any

from shmbroker.client.client import Client, connect

#: What a broker's configuration must say for that.
LISTENING = '[listen]\naddress = "tcp://127.0.0.1:0"\n'


def control_of(broker: Any) -> str:
    """Where it listens."""
    told = json.loads((broker.places.runtime_dir / "broker.json").read_text())["listen"]
    found: str = told["control"][0]
    return found


def token_file_of(broker: Any) -> str:
    """What its clients must show."""
    return str(broker.places.runtime_dir / "token")


def connect_remote(broker: Any, **options: Any) -> Client:
    """A client of it in this process, over the network although it is near."""
    return connect(control_of(broker), local=False, token_file=token_file_of(broker), **options)


__all__ = ["LISTENING", "connect_remote", "control_of", "token_file_of"]

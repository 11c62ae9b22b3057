"""Ports: waited for while a predecessor lets go, picked where none is in the way, kept."""

from __future__ import annotations

import json
import socket
import stat
import threading
from pathlib import Path

import pytest

from shmbroker.config import load
from shmbroker.control.ports import LISTEN_FILE, ListenFile
from shmbroker.errors import ConfigError

HERE = "127.0.0.1"


def ports_of(path: Path, **flags: object) -> tuple[int, int, int, int]:
    given = {f"listen.{key}": value for key, value in flags.items()}
    found = ListenFile(path).ports(load(None, {}, given), HERE)
    return found.control, found.ingress, found.data, found.events


def test_a_port_that_a_dying_broker_still_has_is_waited_for(tmp_path: Path) -> None:
    first = ports_of(tmp_path, address="tcp://127.0.0.1:0")
    for flags in ({"address": "tcp://127.0.0.1:0"}, {"address": f"tcp://127.0.0.1:{first[0]}"}):
        with socket.create_server((HERE, first[0])) as held:
            timer = threading.Timer(0.2, held.close)
            timer.start()
            flags |= {"ingress_port": 0, "data_port": 0, "events_port": 0}
            assert ports_of(tmp_path, **flags) == first
            timer.join()


def test_picked_ports_differ_and_stay_off_those_asked_for(tmp_path: Path) -> None:
    found = {ports_of(tmp_path / str(n), address="tcp://127.0.0.1:0") for n in _made(tmp_path)}
    assert all(len(set(ports)) == 4 for ports in found)
    assert len(found) > 1


def _made(tmp_path: Path) -> range:
    for n in range(8):
        (tmp_path / str(n)).mkdir()
    return range(8)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"token": 5, "ports": 7}', b"\xff"])
def test_a_file_that_is_rubbish_is_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / LISTEN_FILE
    path.write_bytes(content)
    file = ListenFile(tmp_path)
    token = file.token()
    assert len(token) == 32
    ports = ports_of(tmp_path, address="tcp://127.0.0.1:0")
    assert ListenFile(tmp_path).token() == token
    assert ports_of(tmp_path, address="tcp://127.0.0.1:0") == ports
    assert set(json.loads(path.read_bytes())) == {"token", "ports"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_port_that_cannot_be_bound_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 is no address of this host"):
        ListenFile(tmp_path).ports(
            load(None, {}, {"listen.address": "tcp://192.0.2.1:9300"}), "192.0.2.1"
        )

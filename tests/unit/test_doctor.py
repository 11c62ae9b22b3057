"""`doctor`: each finding says what is; what is not good says the gain and the way."""

from __future__ import annotations

import json
import os
import resource
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shmbroker.cli.main import app
from shmbroker.config import Places, load
from shmbroker.control.keys import KeyDirectory
from shmbroker.workers import doctor

runner = CliRunner()
LOOKED_AT = {
    "kernel", "futex_waitv", "/dev/shm", "data directory", "runtime directory", "O_DIRECT",
    "I/O scheduler", "memlock", "open files", "cores", "cpu frequency", "clock", "RemoveIPC",
    "listen", "keys", "connections",
}  # fmt: skip


def _finding(name: str) -> doctor.Finding:
    where = Places.find()
    (found,) = [f for f in doctor.examine(where, load(where.config_file)) if f.name == name]
    return found


def test_every_check_looks_and_leaves_nothing_behind(
    isolated_env: dict[str, str], tmp_path: Path
) -> None:
    result = runner.invoke(app, ["doctor", "--json"])
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {f["name"] for f in found} == LOOKED_AT
    assert all(f["found"] for f in found)
    assert all(bool(f["gain"] and f["how"]) == (f["state"] != "good") for f in found)
    assert result.exit_code == (1 if any(f["state"] == "stops" for f in found) else 0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    text = runner.invoke(app, ["doctor"]).stdout
    assert all(name in text for name in LOOKED_AT)


def test_what_stops_a_broker_ends_with_1(isolated_env: dict[str, str], tmp_path: Path) -> None:
    huge = tmp_path / "huge.toml"
    huge.write_text(f"[memory]\nbudget_bytes = {1 << 50}\n")
    result = runner.invoke(app, ["doctor", "--config", str(huge)])
    assert result.exit_code == 1
    assert "STOPS   /dev/shm" in result.stdout
    assert "remount" in result.stdout
    small = tmp_path / "small.toml"
    small.write_text('[memory]\nbudget_bytes = "8MiB"\n')
    assert runner.invoke(app, ["doctor", "--config", str(small)]).exit_code == 0


def test_a_check_that_cannot_look_says_so(
    isolated_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(doctor, "detect_io_mode", fail)
    where = Places.find()
    found = list(doctor.examine(where, load()))
    assert sum("can't be looked at here (Input/output error)" in f.found for f in found) == 1


def test_a_file_system_without_o_direct_is_named(
    isolated_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBROKER_DATA_DIR", "/dev/shm/nowhere")
    found = _finding("O_DIRECT")
    assert (found.state, "tmpfs" in found.found) == ("better", True)


def test_old_kernels_and_slow_clocks_are_told_from_good_ones(
    isolated_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.uname()
    for release, state in (
        ("4.19.0-1", "stops"), ("5.15.0-91-generic", "better"), ("6.8.1", "good"),
    ):  # fmt: skip
        fake = os.uname_result((real.sysname, real.nodename, release, "", real.machine))
        monkeypatch.setattr(os, "uname", lambda fake=fake: fake)
        assert _finding("kernel").state == state


def test_the_last_setting_of_logind_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usr, etc = tmp_path / "usr", tmp_path / "etc"
    for root in (usr, etc):
        (root / "systemd" / "logind.conf.d").mkdir(parents=True)
    monkeypatch.setattr(doctor, "_LOGIND_ROOTS", (str(usr), str(etc)))
    assert doctor._logind_setting("RemoveIPC") == ""
    (etc / "systemd" / "logind.conf").write_text("[Login]\n#RemoveIPC=no\nRemoveIPC=yes\n")
    assert doctor._logind_setting("RemoveIPC") == "yes"
    (etc / "systemd" / "logind.conf.d" / "50.conf").write_text("[Login]\nRemoveIPC = No\n")
    assert doctor._logind_setting("RemoveIPC") == "no"


def test_what_would_listen_is_looked_at(isolated_env: dict[str, str], tmp_path: Path) -> None:
    where = Places.find()

    def look(**listen: object) -> dict[str, doctor.Finding]:
        loaded = load(None, {}, {f"listen.{key}": value for key, value in listen.items()})
        return {f.name: f for f in doctor.examine(where, loaded)}

    quiet = look()
    assert quiet["listen"].found == "nothing, by default"
    assert quiet["connections"].state == quiet["keys"].state == "good"
    assert look(address="tcp://127.0.0.1:0", unix=True)["listen"].state == "good"
    with socket.create_server(("127.0.0.1", 0)) as held:
        taken = look(address=f"tcp://127.0.0.1:{held.getsockname()[1]}")["listen"]
    assert taken.state == "stops"
    assert "is in use by another program" in taken.gain
    assert "port 0" in taken.how
    bare = look(address="tcp://*:0")["keys"]
    assert (bare.state, bare.how) == ("stops", f"shmbroker keys generate --dir {where.keys_dir}")
    assert look(address="tcp://*:0", insecure=True)["keys"].state == "better"
    KeyDirectory(where.keys_dir).generate()
    KeyDirectory(where.keys_dir).add_client("laptop")
    assert "1 clients authorised" in look(address="tcp://*:0")["keys"].found
    many = look(unix=True, max_connections=1_000_000)["connections"]
    assert many.state == "better" or resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 1_001_024

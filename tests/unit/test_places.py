"""Places: names of instances, XDG rules, sockets whose paths are too long."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import zmq

from shmbroker.errors import ConfigError
from shmbroker.places import SUN_PATH_MAX_BYTES, Places, shm_prefix


def find(tmp_path: Path, instance: str | None = None, **env: str) -> Places:
    return Places.find(instance, env={"HOME": "/home/me", **env}, tmp_dir=tmp_path)


def test_places_follow_xdg_and_the_instance(tmp_path: Path) -> None:
    plain = find(tmp_path)
    assert plain.instance == "default"
    assert plain.data_dir == Path("/home/me/.local/share/shmbroker/default")
    assert plain.runtime_dir == tmp_path / f"shmbroker-{os.getuid()}" / "default"
    assert plain.config_file is None
    xdg = find(tmp_path, XDG_DATA_HOME="/d", XDG_RUNTIME_DIR="/r", SHMBROKER_INSTANCE="a")
    assert (xdg.data_dir, xdg.runtime_dir) == (Path("/d/shmbroker/a"), Path("/r/shmbroker/a"))
    assert find(tmp_path, "b", SHMBROKER_INSTANCE="a").instance == "b"
    assert find(tmp_path, XDG_DATA_HOME="relative").data_dir == plain.data_dir
    assert find(tmp_path, SHMBROKER_DATA_DIR="/x").data_dir == Path("/x")
    given = Places.find("b", data_dir="/y", env={"SHMBROKER_DATA_DIR": "/x"}, tmp_dir=tmp_path)
    assert given.data_dir == Path("/y")


def test_the_usual_configuration_is_taken_if_it_is_there(tmp_path: Path) -> None:
    usual = tmp_path / "shmbroker" / "default.toml"
    usual.parent.mkdir()
    usual.touch()
    assert find(tmp_path, XDG_CONFIG_HOME=str(tmp_path)).config_file == usual
    asked = find(tmp_path, XDG_CONFIG_HOME=str(tmp_path), SHMBROKER_CONFIG="/absent.toml")
    assert asked.config_file == Path("/absent.toml")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "~a", "a" * 65, "ä", "a\n"])
def test_names_that_no_instance_may_have_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="can't be an instance's name"):
        find(tmp_path, name)


def test_the_fallback_in_tmp_is_private_and_somebody_elses_is_refused(tmp_path: Path) -> None:
    places = find(tmp_path)
    root = tmp_path / f"shmbroker-{os.getuid()}"
    root.symlink_to("/somewhere")
    with pytest.raises(ConfigError, match="is no directory of uid"):
        places.make_runtime_dir()
    root.unlink()
    root.mkdir(mode=0o755)
    made = places.make_runtime_dir()
    assert made.is_dir()
    for path in (made, root):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    places.remove_runtime_dir()
    assert not root.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a directory of another user")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    places = find(tmp_path)
    places.runtime_dir.parent.mkdir()
    os.chown(places.runtime_dir.parent, 12_345, -1)
    with pytest.raises(ConfigError, match="owner: 12345"):
        places.make_runtime_dir()


def test_long_socket_paths_work_for_plain_sockets_and_zeromq(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tmp_path = tmp_path_factory.mktemp("t")  # stands for /tmp, so it must be short itself
    runtime = tmp_path / ("r" * 120)
    runtime.mkdir()
    places = find(tmp_path, XDG_RUNTIME_DIR=str(runtime))
    places.make_runtime_dir()
    places.make_short_link()
    path = places.socket_path("attach")
    assert len(os.fsencode(path)) <= SUN_PATH_MAX_BYTES
    again = find(tmp_path, XDG_RUNTIME_DIR=str(runtime)).socket_path("attach")
    assert again == path
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(path)
        server.listen()
        assert (places.runtime_dir / "attach").is_socket()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(again)
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        context.socket(zmq.DEALER) as dealer,
    ):
        router.bind(places.zmq_address("control"))
        dealer.connect(places.zmq_address("control"))
        dealer.send(b"hello")
        assert router.poll(5000)
        assert router.recv_multipart()[1] == b"hello"
        dealer.linger = router.linger = 0
    places.remove_runtime_dir()
    assert not os.path.lexists(path)
    assert not places.runtime_dir.exists()


def test_a_short_link_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    runtime = tmp_path / ("r" * 120)
    runtime.mkdir()
    places = find(tmp_path, XDG_RUNTIME_DIR=str(runtime))
    places.make_runtime_dir()
    places.make_short_link()
    link = Path(places.socket_path("attach")).parent
    link.unlink()
    link.symlink_to("/elsewhere")
    with pytest.raises(ConfigError, match="leads to /elsewhere"):
        places.socket_path("attach")


def test_who_looks_for_a_broker_that_is_gone_leaves_no_link(tmp_path: Path) -> None:
    runtime = tmp_path / ("r" * 120)
    runtime.mkdir()
    places = find(tmp_path, XDG_RUNTIME_DIR=str(runtime))
    places.make_runtime_dir()  # with a log of before, say
    with pytest.raises(FileNotFoundError):
        places.socket_path("attach")
    assert places.zmq_address("control").endswith("/control")
    assert not (tmp_path / f"shmbroker-{os.getuid()}").exists()


def test_a_client_with_a_tmp_of_its_own_makes_the_link_to_a_socket_that_is_there(
    tmp_path: Path,
) -> None:
    runtime = tmp_path / ("r" * 120)
    runtime.mkdir()
    places = find(tmp_path, XDG_RUNTIME_DIR=str(runtime))
    (places.make_runtime_dir() / "attach").touch()
    assert os.path.samefile(places.socket_path("attach"), places.runtime_dir / "attach")
    places.remove_short_link()
    assert not (tmp_path / f"shmbroker-{os.getuid()}").exists()


def test_short_socket_paths_stay_as_they_are(tmp_path: Path) -> None:
    places = find(tmp_path, XDG_RUNTIME_DIR="/r")
    assert places.socket_path("attach") == "/r/shmbroker/default/attach"
    assert not (tmp_path / f"shmbroker-{os.getuid()}").exists()


def test_shared_memory_names_bear_the_user_and_the_data_directory() -> None:
    prefix = shm_prefix("0" * 32, uid=7)
    assert prefix.startswith("/shmb-7-")
    assert len(prefix) == len("/shmb-7-") + 8
    assert prefix != shm_prefix("1" * 32, uid=7)


def test_a_short_link_that_the_broker_removes_meanwhile_is_not_made_again(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path_factory.mktemp("t")
    runtime = tmp_path / ("r" * 120)
    runtime.mkdir()
    places = find(tmp_path, XDG_RUNTIME_DIR=str(runtime))
    places.make_runtime_dir()
    places.make_short_link()
    (places.runtime_dir / "attach").touch()
    lexists = os.path.lexists

    def seen_for_the_last_time(path: Path) -> bool:
        found = lexists(path)
        places.remove_runtime_dir()
        return found

    monkeypatch.setattr(os.path, "lexists", seen_for_the_last_time)
    with pytest.raises(FileNotFoundError):
        places.socket_path("attach")
    monkeypatch.undo()
    assert not [p for p in tmp_path.rglob("*") if p.is_symlink()]

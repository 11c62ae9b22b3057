"""RabbitMQ streams: one node with the stream plugin, reached by the stream protocol alone.

Server and Erlang are Debian's packages, unpacked; rstream, the RabbitMQ team's Python client, comes
from PyPI, the Java client by Maven. The server's settings are its defaults but for where it listens
and keeps its data. There is one mode: a stream has no setting that makes a confirm wait for a sync
(osiris, which writes its log, calls no sync at all). The fastest client of all is Java's; its own
benchmark, stream-perf-test, is in no registry, so `RabbitmqPerf.java` does with the client what
that does: sub-entries of 100 values and 100,000 unconfirmed ones, the fastest of 10 to 500 values,
100 to 1,000 sub-entries a frame and 10,000 to 200,000 unconfirmed (0.6 M/s without sub-entries,
3.3 M/s with them).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil

from shmbroker.perf.devices.needs import require
from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.daemon import Daemon, free_port
from shmbroker.perf.peers.fetching import FetchFailed, Unpacked, pip_version
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer, Server
from shmbroker.perf.peers.rabbitmq_client import RabbitmqClient

_DEBIAN: Final = "rabbitmq-server"
_PYTHON: Final = "rstream"
_PYTHON_VERSION: Final = "1.1.1"  # the client calls a method that its API doesn't promise
_JAVA: Final = "1.11.0"
_PERF: Final = Path(__file__).with_name("RabbitmqPerf.java")
_TOOL_HEAP: Final = "-Xmx512M"
_TOOL_S: Final = 900.0
_RATE: Final = re.compile(r"^([\d.]+) records/s$", re.MULTILINE)
_UP: Final = "Server startup complete"
_SYSTEM_ERLANG: Final = Path("/usr/lib/erlang")
_ERL: Final = """\
#!/bin/sh
export ROOTDIR='{home}' BINDIR='{bin}' EMU=beam PROGNAME=erl
exec "$BINDIR/erlexec" "$@"
"""


class _Rabbitmq(Server):
    """A node that runs."""

    def __init__(self, daemon: Daemon, port: int) -> None:
        self._daemon = daemon
        self.address: Any = port

    def processes(self) -> list[psutil.Process]:
        return self._daemon.processes()


class Rabbitmq(Peer):
    """RabbitMQ streams."""

    name: ClassVar[str] = "rabbitmq"
    title: ClassVar[str] = "RabbitMQ streams"
    client_title: ClassVar[str] = "rstream (Python)"
    fastest_title: ClassVar[str] = "RabbitMQ's stream client (Java)"
    modes: ClassVar[tuple[Mode, ...]] = (
        Mode("memory", "memory", "publisher confirm, defaults: in the page cache of a quorum, here "
             "this one node; streams never sync, so it outlives the process, not the host"),
    )  # fmt: skip
    fixed_bytes: ClassVar[int] = 128 << 20

    def fetch(self) -> None:
        self._erlang(self._server())
        self._python()
        self._jars()
        _compiler()

    def _server(self) -> Unpacked:
        return self.cache.debian("rabbitmq", _DEBIAN)

    def _python(self) -> Path:
        return self.cache.pip("rabbitmq", f"{_PYTHON}=={_PYTHON_VERSION}")

    def _jars(self) -> Path:
        return self.cache.maven("rabbitmq", f"com.rabbitmq:stream-client:{_JAVA}")

    def _home(self) -> Path:
        """Of the server itself: its own scripts, without Debian's wrapper, which wants root."""
        found = sorted(self._server().root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"))
        if not found:
            raise FetchFailed(f"{_DEBIAN} below {self._server().root} has no server in it")
        return found[-1]

    @staticmethod
    def _erlang(server: Unpacked) -> Path:
        """Where Erlang's own programs are: among what was unpacked, or installed here."""
        for home in (server.root / "usr/lib/erlang", _SYSTEM_ERLANG):
            for program in home.glob("erts-*/bin/erlexec"):
                return program.parent
        raise FetchFailed(f"{_DEBIAN} below {server.root} came without Erlang")

    def versions(self) -> dict[str, str]:
        runtime = self._erlang(self._server()).parents[1]
        return {
            "RabbitMQ": self._home().name.partition("-")[2],
            "Erlang": max(each.name for each in (runtime / "releases").iterdir() if each.is_dir()),
            _PYTHON: pip_version(self._python(), _PYTHON),
            "RabbitMQ's stream client": _JAVA,
        }

    @property
    def client(self) -> type[Client]:
        return RabbitmqClient

    @property
    def path(self) -> list[Path]:
        return [self._python()]

    @contextmanager
    def start(self, directory: Path, mode: Mode) -> Iterator[Server]:
        port, log = free_port(), directory / "rabbitmq.log"
        (directory / "rabbitmq.conf").write_text(_config(port), encoding="utf-8")
        (directory / "enabled_plugins").write_text("[rabbitmq_stream].\n", encoding="utf-8")
        command = [self._home() / "sbin" / "rabbitmq-server"]
        env = self._env(directory)
        with Daemon(command, log, lambda: _UP in _text(log), env, directory) as daemon:
            yield _Rabbitmq(daemon, port)

    def _env(self, directory: Path) -> dict[str, str]:
        """Everything below `directory`, no epmd, and the server in place of its start script."""
        server = self._server()
        env, runtime = server.env(), self._erlang(server)
        (programs := directory / "bin").mkdir()
        erl = programs / "erl"  # Debian's knows /usr/lib/erlang only
        erl.write_text(_ERL.format(home=runtime.parents[1], bin=runtime), encoding="utf-8")
        erl.chmod(0o755)
        port = free_port()
        return env | {
            "PATH": os.pathsep.join([str(programs), env["PATH"]]),
            "ERL_LIBS": str(server.root / "usr/lib/erlang/lib"),
            "HOME": str(directory),  # for the cookie
            "RUNNING_UNDER_SYSTEMD": "true",  # the start script becomes the server: one pid
            "RABBITMQ_NODENAME": "rabbit@localhost",
            "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "generated"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            # Distribution by a port of the loopback: epmd would outlive the server.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-sname rabbit@localhost -start_epmd false -erl_epmd_port {port} -kernel "
                f"inet_dist_listen_min {port} inet_dist_listen_max {port} "
                "inet_dist_use_interface {127,0,0,1}"
            ),
        }

    def fastest_produce(
        self, server: Server, topic: str, count: int, value_bytes: int, mode: Mode
    ) -> float | None:
        return self._perf(server, "produce", topic, count, value_bytes)

    def fastest_read(self, server: Server, topic: str, count: int) -> float | None:
        return self._perf(server, "read", topic, count)

    def _perf(self, server: Server, *words: str | int) -> float:
        """What RabbitmqPerf.java finds; it is compiled before its clock starts."""
        command = [require("java", _JDK), _TOOL_HEAP, "-cp", f"{self._jars()}/*", str(_PERF),
                   server.address, *words]  # fmt: skip
        done = subprocess.run(
            [str(word) for word in command], check=False, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_TOOL_S,
        )  # fmt: skip
        found = _RATE.findall(done.stdout)
        if done.returncode or not found:
            said = (done.stderr + done.stdout)[-800:]
            raise RuntimeError(f"{_PERF.name} {words[0]} ended with {done.returncode}: {said}")
        return float(found[-1])


_JDK: Final = "openjdk-17-jdk-headless"


def _compiler() -> str:
    """`java FILE.java` compiles it, which a runtime alone cannot."""
    return require("javac", _JDK)


def _config(port: int) -> str:
    """Defaults, but: no AMQP, the stream protocol on the loopback, the log to its output."""
    return f"""\
listeners.tcp = none
stream.listeners.tcp.1 = 127.0.0.1:{port}
stream.advertised_host = 127.0.0.1
stream.advertised_port = {port}
log.file = false
log.console = true
log.console.level = info
"""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


__all__ = ["Rabbitmq"]

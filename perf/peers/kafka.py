"""Apache Kafka: one KRaft node, broker and controller in one JVM, started with plain `java`.

Jars come by Maven, the Python client (librdkafka inside) from PyPI. The JVM's flags are those of
Kafka's own start script; the server's settings are its defaults but for where it listens and keeps
its data, and `flush.messages=1` in the durable mode. The fastest client of all is Java's, by
Kafka's own ProducerPerformance and ConsumerPerformance.
"""

from __future__ import annotations

import re
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil

from shmbroker.perf.devices.needs import require
from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.daemon import Daemon, free_port
from shmbroker.perf.peers.fetching import FetchFailed, pip_version
from shmbroker.perf.peers.kafka_client import KafkaClient
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer, Server

_VERSION: Final = "4.1.1"
_LOG4J: Final = "2.24.3"  # what Kafka 4.1 is released with
_JARS: Final = (
    f"org.apache.kafka:kafka_2.13:{_VERSION}",
    f"org.apache.kafka:kafka-tools:{_VERSION}",
    f"org.apache.logging.log4j:log4j-core:{_LOG4J}",
    f"org.apache.logging.log4j:log4j-slf4j-impl:{_LOG4J}",
)
_PYTHON: Final = "confluent-kafka"
#: bin/kafka-run-class.sh and kafka-server-start.sh, their defaults.
_JVM: Final = ("-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
               "-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent",
               "-XX:MaxInlineLevel=15", "-Djava.awt.headless=true")  # fmt: skip
_SERVER_HEAP: Final = ("-Xms1G", "-Xmx1G")
_TOOL_HEAP: Final = ("-Xmx512M",)
_UP: Final = "Kafka Server started"
_TOOL_S: Final = 900.0
_PRODUCED: Final = re.compile(r"^\d+ records sent, ([\d.]+) records/sec", re.MULTILINE)
_LOG_CONFIG: Final = """\
<Configuration status="warn"><Appenders><Console name="out">
<PatternLayout pattern="[%d] %p %m (%c)%n"/></Console></Appenders>
<Loggers><Root level="info"><AppenderRef ref="out"/></Root></Loggers></Configuration>
"""


class _Kafka(Server):
    """A node that runs."""

    def __init__(self, daemon: Daemon, port: int, directory: Path) -> None:
        self._daemon = daemon
        self.address: Any = f"127.0.0.1:{port}"
        self.directory = directory

    def processes(self) -> list[psutil.Process]:
        return self._daemon.processes()


class Kafka(Peer):
    """Apache Kafka."""

    name: ClassVar[str] = "kafka"
    title: ClassVar[str] = "Apache Kafka"
    client_title: ClassVar[str] = "confluent-kafka (Python)"
    fastest_title: ClassVar[str] = "Kafka's own performance tools (Java)"
    modes: ClassVar[tuple[Mode, ...]] = (
        Mode("durable", "durable", "acks=all with flush.messages=1: each batch is synced before it "
             "is acknowledged; outlives the host", {"flush.messages": "1"}),
        Mode("memory", "memory", "acks=all, defaults: in the page cache of this one node, synced "
             "when the kernel likes; outlives the process, not the host", {}),
    )  # fmt: skip
    fixed_bytes: ClassVar[int] = 512 << 20

    def fetch(self) -> None:
        self._jars()
        self._python()

    def _jars(self) -> Path:
        return self.cache.maven("kafka", *_JARS)

    def _python(self) -> Path:
        return self.cache.pip("kafka", _PYTHON)

    def versions(self) -> dict[str, str]:
        said = subprocess.run([_java(), "-version"], capture_output=True, text=True, check=False)
        return {
            "Kafka": _VERSION,
            _PYTHON: pip_version(self._python(), _PYTHON),
            "Java": said.stderr.partition('"')[2].partition('"')[0],
        }

    @property
    def client(self) -> type[Client]:
        return KafkaClient

    @property
    def path(self) -> list[Path]:
        return [self._python()]

    @contextmanager
    def start(self, directory: Path, mode: Mode) -> Iterator[Server]:
        port, controller = free_port(), free_port()
        config, logging = directory / "server.properties", directory / "log4j2.xml"
        config.write_text(_config(directory / "data", port, controller), encoding="utf-8")
        logging.write_text(_LOG_CONFIG, encoding="utf-8")
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.tool(directory, "kafka.tools.StorageTool",
                   "format", "--cluster-id", cluster, "--config", str(config))  # fmt: skip
        command = [*self._command(directory, _SERVER_HEAP), "kafka.Kafka", str(config)]
        log = directory / "kafka.log"
        with Daemon(command, log, lambda: _UP in _text(log), directory=directory) as daemon:
            yield _Kafka(daemon, port, directory)

    def fastest_produce(
        self, server: Server, topic: str, count: int, value_bytes: int, mode: Mode
    ) -> float | None:
        """Tuned for throughput: batches of nearly 1 MB, which measured faster than 128 KiB in both
        modes, 50 ms of linger, no compression."""
        assert isinstance(server, _Kafka)
        said = self.tool(
            server.directory, "org.apache.kafka.tools.ProducerPerformance",
            "--topic", topic, "--num-records", str(count), "--record-size", str(value_bytes),
            "--throughput", "-1", "--producer-props", f"bootstrap.servers={server.address}",
            "acks=all", "batch.size=1000000", "linger.ms=50", "buffer.memory=134217728",
        )  # fmt: skip
        found = _PRODUCED.findall(said)
        if not found:
            raise FetchFailed(f"ProducerPerformance said no rate: {said[-500:]}")
        return float(found[-1])

    def fastest_read(self, server: Server, topic: str, count: int) -> float | None:
        """What it says of the time without the group's rebalance."""
        assert isinstance(server, _Kafka)
        said = self.tool(
            server.directory, "org.apache.kafka.tools.ConsumerPerformance",
            "--topic", topic, "--messages", str(count),
            "--bootstrap-server", server.address, "--timeout", "60000",
        )  # fmt: skip
        head, rows = _table(said)
        found = dict(zip(head, rows[-1], strict=True))
        if int(found["data.consumed.in.nMsg"]) < count:
            raise FetchFailed(f"ConsumerPerformance read less than {count}: {said[-500:]}")
        return float(found["fetch.nMsg.sec"])

    def _command(self, directory: Path, heap: tuple[str, ...]) -> list[str]:
        return [_java(), *_JVM, *heap, f"-Dlog4j2.configurationFile={directory / 'log4j2.xml'}",
                f"-Dkafka.logs.dir={directory}", "-cp", f"{self._jars()}/*"]  # fmt: skip

    def tool(self, directory: Path, name: str, *words: str) -> str:
        """What one of Kafka's programs prints."""
        done = subprocess.run(
            [*self._command(directory, _TOOL_HEAP), name, *words], check=False, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_TOOL_S,
        )  # fmt: skip
        if done.returncode:
            said = (done.stderr + done.stdout)[-800:]
            raise RuntimeError(f"Kafka's {name} ended with {done.returncode}: {said}")
        return done.stdout


def _java() -> str:
    return require("java", "openjdk-17-jre-headless")


def _config(data: Path, port: int, controller: int) -> str:
    """Defaults, but: one node for both roles; topics of the cluster itself on one replica, as one
    node has no more."""
    return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _table(said: str) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of ConsumerPerformance's output."""
    lines = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    at = next((n for n, line in enumerate(lines) if "fetch.nMsg.sec" in line), None)
    if at is None or not (rows := [r for r in lines[at + 1 :] if len(r) == len(lines[at])]):
        raise FetchFailed(f"ConsumerPerformance said no rate: {said[-500:]}")
    return lines[at], rows


__all__ = ["Kafka"]

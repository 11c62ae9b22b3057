"""A broker and its clients with 64 MiB of /dev/shm, as containers have by default."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, shmbroker
free = os.statvfs("/dev/shm")
assert free.f_blocks * free.f_frsize == 64 << 20
with shmbroker.connect() as client:
    client.create_topic("wide", partitions=200)
    client.create_topic("deep")
    with client.producer() as producer:
        spread = [producer.send("wide", b"%d" % n, partition=n % 200) for n in range(1000)]
        many = producer.send_many("deep", [b"%020d" % n for n in range(200_000)])
        producer.flush()
    assert all(receipt.result().offset == n // 200 for n, receipt in enumerate(spread))
    with client.consumer("deep", start="earliest") as consumer:
        at = 0
        for batch in consumer.batches(timeout=40):
            assert batch.values() == [b"%020d" % n for n in range(at, at + len(batch))]
            at += len(batch)
            if at == 200_000:
                break
    with client.consumer("wide", start="earliest") as consumer:
        got = sorted(int(consumer.poll(timeout=40).value) for _ in range(1000))
    assert got == list(range(1000))
    memory = client.status()["memory"]
    print("budget", memory["budget_bytes"])
"""


@pytest.mark.root
def test_two_hundred_partitions_work_in_64_mib_of_shared_memory(
    isolated_env: dict[str, str],
) -> None:
    shell = (
        "mount -t tmpfs -o size=64m none /dev/shm && "
        '"$0" -m shmbroker.cli.main up --detach && "$0" -c "$1"; code=$?; '
        '"$0" -m shmbroker.cli.main down; exit $code'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, sys.executable, PROGRAM],
        env=isolated_env, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    budget = int(done.stdout.split("budget", 1)[1].split()[0])
    assert 0 < budget <= 16 << 20

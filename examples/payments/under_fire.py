"""All of it under a killer. Usage: under_fire.py SECONDS (a broker of its own, gone afterwards)

Starts each service twice, kills one after the other with SIGKILL at random moments and starts it
again, lets payments come in meanwhile, and at last counts: a letter for each payment, none missing.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import shmbroker

HERE = Path(__file__).parent
SETTLE_S = 60.0  # for what was under way when the killing ended


def main(seconds: float, seed: int | None = None) -> int:
    """0 if every payment that was acknowledged has its letter."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="payments-") as home, shmbroker.embedded() as client:
        broker = client.address
        letters = Path(home) / "letters"
        services = {
            (name, n): start(broker, name, *arguments)
            for name, arguments in {"order": (), "communication": (letters,), "audit": ()}.items()
            for n in range(1 if name == "audit" else 2)
        }
        paid = Payments(broker)
        try:
            ends, killed = time.monotonic() + seconds, 0
            while time.monotonic() < ends:
                time.sleep(dice.uniform(0.05, 0.6))
                if dice.random() < 0.2:
                    paid.kill()
                else:
                    key = dice.choice(sorted(services))
                    stop(services[key], kill=True)
                    services[key] = start(
                        broker, key[0], *((letters,) if key[0] == "communication" else ())
                    )
                killed += 1
                paid.go_on()
            paid.kill()
            missing = wait_for(letters, paid.acknowledged)
            written = len(list(letters.glob("*.txt")))
            print(f"{len(paid.acknowledged)} payments, {killed} killed, {written} letters, "
                  f"{len(missing)} missing")  # fmt: skip
            for key, service in services.items():
                if service.poll() is not None:
                    print(f"{key[0]} has ended by itself")
                    return 1
            return 1 if missing or not paid.acknowledged else 0
        finally:
            paid.kill()
            for service in services.values():
                stop(service, kill=False)


class Payments:
    """The payment service, started again where it was killed."""

    def __init__(self, broker: str) -> None:
        self._broker, self._next = broker, 0
        self.acknowledged: set[int] = set()
        self._process: subprocess.Popen[str] | None = None
        self.go_on()

    def go_on(self) -> None:
        """Starts it if it does not run; numbers that were not acknowledged may come twice."""
        if self._process is None or self._process.poll() is not None:
            self._collect()
            self._process = start(self._broker, "payment", 1_000_000, self._next)

    def kill(self) -> None:
        """At once."""
        if self._process is not None:
            self._process.kill()
            self._collect()

    def _collect(self) -> None:
        if self._process is not None:
            said, _ = self._process.communicate()
            done = [int(line) for line in said.splitlines(keepends=True) if line.endswith("\n")]
            self.acknowledged.update(done)
            self._next = max([self._next, *(number + 1 for number in done)])
            self._process = None


def start(broker: str, name: str, *arguments: object) -> subprocess.Popen[str]:
    """One of the programs, at the broker of that address."""
    output = subprocess.PIPE if name == "payment" else subprocess.DEVNULL
    command = [sys.executable, HERE / f"{name}.py", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=output, text=True, env=os.environ | {"SHMBROKER_INSTANCE": broker}
    )


def stop(service: subprocess.Popen[str], *, kill: bool) -> None:
    """Ends a program and waits for that."""
    if kill:
        service.kill()
    else:
        service.terminate()
    service.wait()


def wait_for(letters: Path, payments: set[int]) -> set[int]:
    """Payments without a letter, once all have one or patience has ended."""
    deadline = time.monotonic() + SETTLE_S
    while missing := {n for n in payments if not (letters / f"p{n}.txt").exists()}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return missing


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))

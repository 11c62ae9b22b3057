"""Fetches what the peers need into a cache: Python and Debian packages, jars, Go programs.

`Cache` owns its directory (`build/peers`): `pip/NAME`, `debian/NAME`, `maven/NAME`, `go/NAME`, each
complete when its stamp is there, which names what was asked for; asked for something else, it is
made anew. Debian packages are unpacked, not installed: no service is started, nothing of the system
changes, root is not needed. Only names and versions of packages are known here; where they are is
the business of pip, apt, mvn and go.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from shmbroker.perf.devices.needs import require

_LIMIT_S: Final = 900.0
_STAMP: Final = "fetched"
_LOCK: Final = "lock"
_INST: Final = re.compile(r"^Inst (\S+)", re.MULTILINE)


class FetchFailed(RuntimeError):
    """A package could not be had; the text has what its tool said."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Debian packages below a directory of their own, with those they depend on."""

    root: Path

    def program(self, name: str) -> Path:
        """Where a program of them is; raises FetchFailed."""
        for folder in ("usr/bin", "usr/sbin", "bin", "sbin", "usr/games"):
            if (path := self.root / folder / name).exists():
                return path
        raise FetchFailed(f"{name} is in none of the Debian packages below {self.root}")

    def env(self) -> dict[str, str]:
        """The environment for its programs: this one's, with their libraries and programs first."""
        libraries = [str(p) for p in (*self.root.glob("usr/lib/*-linux-gnu"),
                                      *self.root.glob("lib/*-linux-gnu"))]  # fmt: skip
        programs = [str(self.root / folder) for folder in ("usr/bin", "usr/sbin")]
        old = os.environ
        return old | {
            "LD_LIBRARY_PATH": os.pathsep.join(
                filter(None, [*libraries, old.get("LD_LIBRARY_PATH", "")])
            ),
            "PATH": os.pathsep.join([*programs, old.get("PATH", os.defpath)]),
        }


class Cache:
    """What was fetched, below one directory that may be removed at any time between runs."""

    def __init__(self, directory: Path, say: Callable[[str], None] = lambda _text: None) -> None:
        self.directory = directory.absolute()
        self.say = say

    def pip(self, name: str, *packages: str) -> Path:
        """A directory for `sys.path` with these packages ("nats-py==2.9") and what they need."""

        def install(into: Path) -> None:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile",
                       "--disable-pip-version-check", "--only-binary=:all:",
                       "--target", str(into), *packages]  # fmt: skip
            _run(command, f"pip install {' '.join(packages)}")

        return self._made(f"pip/{name}", packages, install)

    def debian(self, name: str, *packages: str) -> Unpacked:
        """These packages, unpacked with all that they depend on and that is not installed here."""

        def install(into: Path) -> None:
            apt = self._apt()
            found = _run([*apt, "--simulate", "--no-install-recommends", "install", *packages],
                         f"apt-get install {' '.join(packages)}")  # fmt: skip
            wanted = _INST.findall(found) or list(packages)  # installed: unpacked once more
            files = into / "deb"
            files.mkdir()
            _run([*apt, "download", *wanted], f"apt-get download {' '.join(wanted)}", files)
            for file in sorted(files.glob("*.deb")):
                _run([require("dpkg-deb", "dpkg"), "--extract", str(file), str(into)], file.name)
            shutil.rmtree(files)

        return Unpacked(self._made(f"debian/{name}", packages, install))

    def maven(self, name: str, *artifacts: str) -> Path:
        """A directory with these jars ("group:artifact:version") and those they need."""

        def install(into: Path) -> None:
            pom = into / "pom.xml"
            pom.write_text(_pom(artifacts), encoding="utf-8")
            command = [require("mvn", "maven"), "--batch-mode", "--quiet", "--file", str(pom),
                       f"-Dmaven.repo.local={self.directory / 'maven-repository'}",
                       "dependency:copy-dependencies",
                       f"-DoutputDirectory={into}", "-DincludeScope=runtime"]  # fmt: skip
            _run(command, f"mvn dependency:copy-dependencies of {', '.join(artifacts)}")

        return self._made(f"maven/{name}", artifacts, install)

    def go(self, name: str, *packages: str) -> Path:
        """A directory with the programs of these packages ("module/path@version"), built here.

        The modules and what the compiler keeps (700 MB) go when it is done.
        """

        def install(into: Path) -> None:
            work = into / "work"
            env = os.environ | {
                "GOBIN": str(into), "GOPATH": str(work / "path"), "GOCACHE": str(work / "cache"),
                "GOFLAGS": "-modcacherw -trimpath", "CGO_ENABLED": "0",
            }  # fmt: skip
            for package in packages:
                command = [require("go", "golang-go"), "install", package]
                _run(command, f"go install {package}", env=env)
            shutil.rmtree(work)

        return self._made(f"go/{name}", packages, install)

    def _made(self, place: str, wanted: Sequence[str], make: Callable[[Path], None]) -> Path:
        directory = self.directory / place
        stamp, text = directory / _STAMP, "\n".join([sys.version, *wanted]) + "\n"
        with self._alone():
            if not (stamp.exists() and stamp.read_text(encoding="utf-8") == text):
                self._make(directory, wanted, make)
                stamp.write_text(text, encoding="utf-8")
        return directory

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits for another run that fetches into the same cache."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / _LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make(self, directory: Path, wanted: Sequence[str], make: Callable[[Path], None]) -> None:
        self.say(f"fetching {', '.join(wanted)}")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            make(directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def _apt(self) -> list[str]:
        """apt-get with lists and archives of our own, the lists fetched once."""
        home = self.directory / "apt"
        command = [require("apt-get", "apt"), "--quiet=2", "-o", "Debug::NoLocking=1",
                   "-o", f"Dir::State::lists={home / 'lists'}",
                   "-o", f"Dir::Cache={home / 'cache'}", "-o", "APT::Sandbox::User="]  # fmt: skip
        if not (home / _STAMP).exists():
            for folder in ("lists/partial", "cache/archives/partial"):
                (home / folder).mkdir(parents=True, exist_ok=True)
            self.say("fetching apt's lists")
            _run([*command, "update"], "apt-get update")
            (home / _STAMP).touch()
        return command


def pip_version(directory: Path, package: str) -> str:
    """Of a package in a directory that `Cache.pip` made; raises FetchFailed."""
    for found in metadata.distributions(path=[str(directory)]):
        if found.metadata["Name"].lower().replace("_", "-") == package.lower():
            return found.version
    raise FetchFailed(f"{package} is not in {directory}")


def _pom(artifacts: Sequence[str]) -> str:
    dependencies = "".join(
        f"<dependency><groupId>{escape(group)}</groupId><artifactId>{escape(artifact)}"
        f"</artifactId><version>{escape(version)}</version></dependency>"
        for group, artifact, version in (each.split(":") for each in artifacts)
    )
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>shmbroker</groupId>"
        f"<artifactId>peers</artifactId><version>1</version><dependencies>{dependencies}"
        "</dependencies></project>\n"
    )


def _run(
    command: list[str], what: str, directory: Path | None = None, env: dict[str, str] | None = None
) -> str:
    """What it printed; raises FetchFailed."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            cwd=directory, timeout=_LIMIT_S, env=env,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FetchFailed(f"{what}: not done after {_LIMIT_S:.0f} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise FetchFailed(f"{what} ended with {done.returncode}: {said}")
    return done.stdout


__all__ = ["Cache", "FetchFailed", "Unpacked", "pip_version"]

"""The directory of keys: the broker's CURVE key and certificate, and whose CURVE keys may come in.

    server.key          the broker's public key, which clients must know
    server.key_secret   its key pair, 0600
    tls.crt, tls.key    the data port's certificate, signed by itself, and its key, 0600
    authorized/*.key    the public keys of clients that are let in, one file each
    clients/NAME/       what the program NAME is given: client.key_secret, and server.key again

Owns: this layout (docs/remote.md) and the files' form, which is that of `zmq.auth` and czmq, so
that their tools read them. Files with secrets are 0600 from their first byte on, in directories
that are 0700. Nothing here speaks to a broker: a running one looks at `authorized/` by itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shmbroker.errors import ConfigError

SECRET_SUFFIX: Final = ".key_secret"
PUBLIC_SUFFIX: Final = ".key"
CLIENT: Final = "client"
_SERVER: Final = "server"
_KEY_BYTES: Final = 40  # in Z85
_FILE_BYTES_MAX: Final = 64 << 10  # of a file that is read for a key
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_LINE: Final = re.compile(
    r"^\s*(public|secret)-key\s*=\s*[\"']?([^\"'\s]+)[\"']?\s*$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key as its file says it, in Z85."""

    public: bytes
    secret: bytes | None = None  # None: the file has only the public half


@dataclass(frozen=True, slots=True)
class KeyDirectory:
    """One such directory; it need not be there yet."""

    path: Path

    @property
    def secret(self) -> Path:
        """The broker's own key pair."""
        return self.path / f"{_SERVER}{SECRET_SUFFIX}"

    @property
    def public(self) -> Path:
        """What clients must know of it."""
        return self.path / f"{_SERVER}{PUBLIC_SUFFIX}"

    @property
    def certificate(self) -> Path:
        """Of the data port."""
        return self.path / "tls.crt"

    @property
    def certificate_key(self) -> Path:
        """Of the data port."""
        return self.path / "tls.key"

    @property
    def authorized(self) -> Path:
        """Whom the broker lets in."""
        return self.path / "authorized"

    def client(self, name: str) -> Path:
        """What the program `name` is given."""
        return self.path / "clients" / name

    @property
    def is_complete(self) -> bool:
        """Whether a broker can be reached with it beyond loopback."""
        return not self.missing()

    def missing(self) -> list[str]:
        """The files that a broker needs and that are not there."""
        needed = (self.secret, self.certificate, self.certificate_key)
        return [path.name for path in needed if not path.exists()]

    def generate(self, host_names: tuple[str, ...] = ()) -> list[Path]:
        """Makes what a broker needs and is missing; returns what was made. Changes no key."""
        from shmbroker.control.certificate import write_certificate

        for directory in (self.path, self.authorized):
            make_private(directory)
        made = []
        if not self.secret.exists():
            pair = new_pair()
            write_pair(self.public, KeyPair(pair.public))
            write_pair(self.secret, pair)
            made += [self.secret, self.public]
        if not (self.certificate.exists() and self.certificate_key.exists()):
            write_certificate(self.certificate, self.certificate_key, host_names)
            made += [self.certificate, self.certificate_key]
        return made

    def add_client(self, name: str) -> Path:
        """A new key for the program `name`, let in; returns the directory to give it."""
        check_name(name)
        directory = self.client(name)
        if (directory / f"{CLIENT}{SECRET_SUFFIX}").exists() or self._of(name).exists():
            raise ConfigError(
                f"there is a client {name!r} already; take it out first with: "
                f"shmbroker keys revoke {name}",
                file=str(self.path),
            )
        server = read_pair(self.public)
        pair = new_pair()
        make_private(directory.parent)
        make_private(directory)
        write_pair(directory / f"{_SERVER}{PUBLIC_SUFFIX}", server)
        write_pair(directory / f"{CLIENT}{SECRET_SUFFIX}", pair)
        self.authorize(name, pair.public)
        return directory

    def authorize(self, name: str, public: bytes) -> Path:
        """Lets the owner of a public key in, under a name."""
        check_name(name)
        make_private(self.path)
        make_private(self.authorized)
        write_pair(self._of(name), KeyPair(public))
        return self._of(name)

    def revoke(self, name: str) -> None:
        """Lets that client in no more; the files it was given go too. ConfigError if unknown."""
        check_name(name)
        if not self._of(name).exists():
            known = ", ".join(sorted(self.clients())) or "none"
            raise ConfigError(
                f"no client {name!r} is authorised", file=str(self.authorized), allowed=known
            )
        self._of(name).unlink()
        directory = self.client(name)
        if directory.is_dir():
            for entry in directory.iterdir():
                entry.unlink()
            directory.rmdir()

    def clients(self) -> dict[str, bytes]:
        """The public keys that are let in, by name. A file that can't be read lets nobody in."""
        found: dict[str, bytes] = {}
        try:
            entries = sorted(self.authorized.glob(f"*{PUBLIC_SUFFIX}"))
        except OSError:
            return found
        for path in entries:
            try:
                found[path.stem] = read_pair(path).public
            except ConfigError:
                continue
        return found

    def _of(self, name: str) -> Path:
        return self.authorized / f"{name}{PUBLIC_SUFFIX}"


def check_name(name: str) -> None:
    """ConfigError for a name that no client can have: it becomes a file's."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} can't be a client's name",
            file="shmbroker keys",
            allowed="1 to 64 of a-z A-Z 0-9 . _ @ - beginning with a letter or digit",
        )


def new_pair() -> KeyPair:
    """A fresh CURVE key."""
    import zmq

    return KeyPair(*zmq.curve_keypair())


def read_pair(path: Path) -> KeyPair:
    """The key of a file; ConfigError says what is wrong with it."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = {
                kind: text.encode() for kind, text in _LINE.findall(file.read(_FILE_BYTES_MAX))
            }
    except OSError as error:
        raise ConfigError(
            f"can't be read: {error.strerror}; keys are made with: shmbroker keys generate",
            file=str(path),
        ) from None
    public = lines.get("public")
    if public is None or any(len(key) != _KEY_BYTES for key in lines.values()):
        raise ConfigError(
            "is no CURVE key", file=str(path), allowed='a line public-key = "40 characters"'
        )
    return KeyPair(public, lines.get("secret"))


def read_secret(path: Path) -> tuple[bytes, bytes]:
    """(public, secret) of a file that others can't read; ConfigError otherwise."""
    pair = read_pair(path)
    if pair.secret is None:
        raise ConfigError("has no secret-key", file=str(path))
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"can be read by others; close it with: chmod 600 {path}", file=str(path))
    return pair.public, pair.secret


def write_pair(path: Path, pair: KeyPair) -> None:
    """Writes the file anew, whole or not at all; 0600 when it holds a secret."""
    text = f'metadata\ncurve\n    public-key = "{pair.public.decode()}"\n'
    if pair.secret is not None:
        text = f'# Secret: for its owner only.\n{text}    secret-key = "{pair.secret.decode()}"\n'
    write_private(path, text.encode(), 0o600 if pair.secret is not None else 0o644)


def write_private(path: Path, content: bytes, mode: int = 0o600) -> None:
    """A file that has its mode before it has a byte, and its name when it is whole."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    new.rename(path)


def make_private(directory: Path) -> None:
    """The directory, 0700; one that is there keeps its mode but for others' right to write."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"can't be made: {error.strerror}", file=str(directory)) from None
    mode = directory.stat().st_mode & 0o777
    if mode & 0o022:
        directory.chmod(mode & ~0o022)


__all__ = [
    "KeyDirectory",
    "KeyPair",
    "check_name",
    "make_private",
    "new_pair",
    "read_pair",
    "read_secret",
    "write_pair",
    "write_private",
]

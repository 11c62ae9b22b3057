"""Who may come from elsewhere, as a directory of public keys says it now, and by what token.

Owns: the look at the directory, again when it has changed, so that a running broker sees keys come
and go; and the tokens of the ports behind control (streams, ingress, events). Control hands each
key a token of its own, made of the broker's secret of this life and of the key, so that who looks
at a token can tell whose it is and whether that key still stands, also of a connection that is long
open. Nobody learns the secret itself over a port that asks for keys.

Used by the acceptor, the readers and the ingress process, each with its own copy. Not thread-safe.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Final

from shmbroker.control.keys import KeyDirectory

_MAC_CHARACTERS: Final = 32


class Authorized:
    """See the module."""

    def __init__(self, directory: Path) -> None:
        """Looks at nothing yet. `directory`: of public keys, one `*.key` a client."""
        self._keys = KeyDirectory(directory.parent)
        self._directory = directory
        self._stamp: tuple[int, ...] = ()
        self._changed_ns = -1  # of the directory itself
        self._names: dict[bytes, str] = {}  # by public key in Z85

    def names(self) -> dict[bytes, str]:
        """Who may come, by public key (Z85), as the directory says now."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            self._names = {key: name for name, key in self._keys.clients().items()}
        return self._names

    def knows(self, name: str) -> bool:
        """Whether a key of that name may still come: cheap, to be asked at each message."""
        try:
            changed_ns = os.stat(self._directory).st_mtime_ns
        except OSError:
            changed_ns = -1
        if changed_ns != self._changed_ns:
            self._changed_ns = changed_ns
            self.names()
        return name in self._names.values()

    def _look(self) -> tuple[int, ...]:
        """Changes whenever a key comes, goes or is written anew."""
        found: list[int] = []
        try:
            with os.scandir(self._directory) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    at = entry.stat()
                    found += [at.st_ino, at.st_mtime_ns, at.st_size]
        except OSError:
            return ()
        return (len(found), *found)


class DataTokens:
    """The tokens that let in: the secret itself, for who came without a key, and one a key."""

    def __init__(self, secret: bytes, authorized: Path | None = None) -> None:
        """`secret`: of this life of the broker. Without a directory it is the only token."""
        self._secret = secret
        self._authorized = None if authorized is None else Authorized(authorized)
        self._seen: dict[bytes, str] = {}

    def of(self, name: str) -> bytes:
        """The token of the key of that name; a wrong one if there is none."""
        if self._authorized is None:
            return self._secret
        for public, known in self._authorized.names().items():
            if known == name:
                return self._made(name, public)
        return b""

    def admits(self, token: bytes) -> bool:
        """Whether that is a token, and its key, if it is one's, still stands."""
        if hmac.compare_digest(token, self._secret):
            return True
        mac, dot, name = token.partition(b".")
        if self._authorized is None or not dot or len(mac) != _MAC_CHARACTERS:
            return False
        right = self.of(name.decode("utf-8", "replace"))
        return bool(right) and hmac.compare_digest(token, right)

    def has_changed(self) -> bool:
        """Whether keys have come, gone or changed since this was asked last: then what was let in
        is to be looked at again."""
        if self._authorized is None:
            return False
        seen, self._seen = self._seen, self._authorized.names()
        return seen is not self._seen

    def _made(self, name: str, public: bytes) -> bytes:
        whose = name.encode() + b"\0" + public
        mac = hmac.new(self._secret, whose, hashlib.sha256).hexdigest()[:_MAC_CHARACTERS]
        return f"{mac}.{name}".encode()


__all__ = ["Authorized", "DataTokens"]

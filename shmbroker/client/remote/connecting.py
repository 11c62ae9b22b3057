"""The way to a broker whose address was given: over the network, or by shared memory after all.

A program that turns out to be on the broker's host, and of its user, takes the local path by itself:
the broker says its boot id and runtime directory, and attaching there shows whether it is the same.
"""

from __future__ import annotations

import os

from shmbroker.client.connection import Connection
from shmbroker.client.local_connection import LocalConnection
from shmbroker.client.remote.connection import RemoteConnection
from shmbroker.client.remote.credentials import Credentials
from shmbroker.errors import NoBroker, ShmbrokerError
from shmbroker.places import Places


def connect_remote(
    address: str,
    *,
    timeout: float,
    reconnect_s: float,
    local: bool | None,
    token: str | None,
    token_file: str | os.PathLike[str] | None,
    keys: str | os.PathLike[str] | None,
) -> Connection:
    """See `shmbroker.connect`."""
    shown = Credentials.find(address, token=token, token_file=token_file, keys=keys)
    remote = RemoteConnection(shown, timeout=timeout, reconnect_s=reconnect_s)
    if local is False:
        return remote
    here = _here(remote, timeout, reconnect_s)
    if here is None and not local:
        return remote
    remote.close()
    if here is None:
        raise NoBroker(address, address, "it is not on this host, or of another user")
    return here


def _here(remote: RemoteConnection, timeout: float, reconnect_s: float) -> LocalConnection | None:
    """An attachment to the same broker, if it is on this host and of this user."""
    told = remote.attachment
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            if bytes.fromhex(file.read().strip().replace("-", "")) != told.boot_id:
                return None
        if os.stat(told.runtime_dir).st_uid != os.getuid():
            return None
        places = Places.find(told.runtime_dir)
        found = LocalConnection(places, timeout=timeout, reconnect_s=reconnect_s)
    except (OSError, ValueError, ShmbrokerError):
        return None
    if found.attachment.dir_id == told.dir_id:
        return found
    found.close()
    return None


__all__ = ["connect_remote"]

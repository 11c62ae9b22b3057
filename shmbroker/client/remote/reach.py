"""How a program reaches a broker that listens: over the network, or past it.

Owns: the choice of the way. Where the broker turns out to be of this host and of this user, and its
shared memory can be mapped, a program takes that, whatever address it was given.
"""

from __future__ import annotations

import os

from shmbroker.client.connection import Connection
from shmbroker.client.local_connection import LocalConnection
from shmbroker.client.remote.connection import RemoteConnection
from shmbroker.client.remote.hello import Credentials, RemoteAttachment, is_remote
from shmbroker.control.sharedmem import boot_id
from shmbroker.errors import ConfigError, ShmbrokerError
from shmbroker.places import Places


def reach(
    address: str,
    *,
    token: str | None,
    token_file: str | os.PathLike[str] | None,
    keys: str | os.PathLike[str] | None,
    local: bool,
    timeout: float,
    reconnect_s: float,
) -> Connection:
    """As `connect`, for an address of a broker that listens."""
    if not is_remote(address):
        raise ConfigError(
            f"{address!r} is no address of a broker",
            file="instance",
            allowed="a name, an absolute path, tcp://HOST:PORT or ipc:///PATH",
        )
    credentials = Credentials.given(token, token_file, keys)
    found = RemoteConnection(address, credentials, timeout=timeout, reconnect_s=reconnect_s)
    near = _near(found.attachment, timeout, reconnect_s) if local else None
    if near is None:
        return found
    found.close()
    return near


def _near(told: RemoteAttachment, timeout: float, reconnect_s: float) -> LocalConnection | None:
    """The same broker through shared memory; None when there is no such way."""
    if bytes.fromhex(told.boot_id) != boot_id():
        return None
    try:
        if told.runtime_dir.stat().st_uid != os.getuid():
            return None
        places = Places.find(str(told.runtime_dir))
        near = LocalConnection(places, timeout=timeout, reconnect_s=reconnect_s)
    except (OSError, ShmbrokerError):
        return None  # another container's, whose /dev/shm or runtime directory is not ours
    if near.attachment.dir_id == told.dir_id:
        return near
    near.close()
    return None


__all__ = ["reach"]

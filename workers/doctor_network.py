"""The checks of `shmbroker doctor` about the network: what would listen, its keys, its connections.

Binds nothing but to try whether a port is free; changes nothing.
"""

from __future__ import annotations

import resource
from typing import Final

from shmbroker.addresses import is_loopback
from shmbroker.config import LoadedConfig, Places
from shmbroker.control.listening import key_directory
from shmbroker.control.ports import ListenFile, resolve
from shmbroker.errors import ConfigError
from shmbroker.workers.broker_state import read_broker_file
from shmbroker.workers.finding import Finding

_FILES_SPARE: Final = 1_024  # segments, rings, workers


def listen(places: Places, loaded: LoadedConfig) -> Finding:
    """Whether what the configuration asks for can be bound."""
    asked = loaded.config.listen
    if asked.tcp is None:
        there = "Unix sockets in the runtime directory" if asked.unix else "nothing, by default"
        return Finding("listen", "good", there)
    found = f"{asked.address}{' and Unix sockets' if asked.unix else ''}"
    try:
        ip = resolve(loaded, asked.tcp[0])
        if not read_broker_file(places).get("listen"):  # else it is ours that has the ports
            ListenFile(places.data_dir).check(loaded, ip)
    except ConfigError as error:
        way_out = error.allowed or "another address"
        return Finding("listen", "stops", found, str(error).partition("; allowed:")[0], way_out)
    return Finding("listen", "good", found)


def keys(places: Places, loaded: LoadedConfig) -> Finding:
    """Whether whoever reaches the broker from elsewhere is known, and nobody listens in."""
    asked = loaded.config.listen
    directory = key_directory(places, asked)
    there = f"{directory.path}: {len(directory.clients())} clients authorised"
    if asked.tcp is None or is_loopback(asked.tcp[0]):
        why = "not needed: no other host reaches it"
        return Finding("keys", "good", there if directory.is_complete else why)
    if directory.is_complete:
        return Finding("keys", "good", there)
    missing = f"none in {directory.path} (missing: {', '.join(directory.missing())})"
    how = f"shmbroker keys generate --dir {directory.path}"
    if asked.insecure:
        gain = "nobody on the way reads or changes records; now whoever sees the traffic can"
        return Finding("keys", "better", f"{missing}, and listen.insecure is set", gain, how)
    return Finding("keys", "stops", missing, "up refuses to listen beyond this host", how)


def connections(_places: Places, loaded: LoadedConfig) -> Finding:
    """Whether there are descriptors for as many connections as are allowed."""
    asked = loaded.config.listen
    if not asked.anything:
        return Finding("connections", "good", "not needed: nothing listens")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {asked.max_connections} a process, of {hard} open files"
    if hard < asked.max_connections + _FILES_SPARE:
        gain = f"room for listen.max_connections = {asked.max_connections}"
        how = f"LimitNOFILE={asked.max_connections + _FILES_SPARE}, or ulimit -n"
        return Finding("connections", "better", found, gain, how)
    return Finding("connections", "good", found)


__all__ = ["connections", "keys", "listen"]

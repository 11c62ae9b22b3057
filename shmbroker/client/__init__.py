"""Everything that a Python program uses; names only, the work is in the modules."""

from shmbroker.client.client import Client, connect

__all__ = ["Client", "connect"]

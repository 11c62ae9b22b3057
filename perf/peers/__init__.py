"""Other systems, measured as the broker is, one small driver each.

How to write a driver
---------------------
1. A module `NAME.py` with a subclass of `Peer` (`peer.py`): what the system is, its modes
   (`mode.py`) with their durability in words, what `fetch` installs below the cache, and `start`,
   which returns a running `Server` on a data directory for one mode. It runs in the measuring
   process, so it imports nothing that was fetched.
2. A module `NAME_client.py` with a subclass of `Client` (`client.py`): the system's fastest Python
   client, made in a spawned process whose `sys.path` has what `fetch` installed. Nothing is timed
   there: `workloads.py` does that, the same for all.
3. `fastest_produce` and `fastest_read` of the `Peer` where another language's client is faster:
   run its program, return records a second.
4. A line in `registry.py` and one in perf/README.md: the settings, whose advice they are, caveats.

Rules: the settings that the system's own documentation recommends for that durability; wait for a
process by what it says or answers, not by sleeping; start processes by `Daemon` only, which ends
them by pid whatever happens; write nothing outside the data directory and the cache; no download
addresses, only names and versions of packages. A system that keeps nothing (`stores` False) is
measured from the first record sent to the last received, and has no catch-up reads.
"""

__all__: list[str] = []

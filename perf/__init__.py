"""Harness, peers, devices and report of the measurements; imported as `shmbroker.perf` only."""

if __name__ == "perf":
    raise ImportError(
        "perf is a part of shmbroker: import shmbroker.perf instead "
        "(shmbroker/perf is a link to this folder)",
        name=__name__,
    )

__all__: list[str] = []

"""The processes of the broker, one file each; imported as `shmbroker.workers` only."""

if __name__ == "workers":
    raise ImportError(
        "workers is a part of shmbroker: import shmbroker.workers instead "
        "(shmbroker/workers is a link to this folder)",
        name=__name__,
    )

__all__: list[str] = []

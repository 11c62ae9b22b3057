"""The asyncio twins of the client's classes; what programs import of them is in `shmbroker.aio`."""

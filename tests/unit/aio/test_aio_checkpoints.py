"""What an asyncio consumer's hand-outs become in its member's checkpoints."""

from __future__ import annotations

from aio_rig import Run, connect, publish
from consumer_fakes import FakeBroker, FakePartition

from shmbroker._core import shm
from shmbroker._core.checkpoint import Checkpoints, CheckpointsView
from shmbroker._core.reader import Mapping
from shmbroker.control.sharedmem import boot_id


def test_what_was_asked_past_is_stored_record_by_record_and_batch_by_batch(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    ids, size = (boot_id(), bytes(16)), shm.checkpoints_bytes(1)
    name = fake.prefix + "-k1"
    made = shm.create(name, shm.KIND_CHECKPOINTS, 1, size, *ids, group="g", member="m")
    view, checkpoints = CheckpointsView(name, made.fileno()), Checkpoints()
    checkpoints.add(Mapping(name, made.fileno(), writable=True))
    made.unlink()
    made.close()
    checkpoints.take("t", bytes(16), 0, 1)

    def stored() -> list[int]:
        return [offset for _, _, _, _, offset, _ in view.look()]

    async def main() -> None:
        async with connect() as client, client.consumer("t", start="earliest") as consumer:
            assert consumer._stream is not None
            consumer._stream._checkpoints = checkpoints
            consumer._stream._stores_itself = True
            publish(log, b"0", b"1", b"2")
            async for record in consumer:
                assert stored() == ([record.offset] if record.offset else [])
                if record.offset == 1:
                    break
            batch = await consumer.poll_batch(1)
            assert batch is not None
            assert batch.base_offset == 2
            assert stored() == [2]
            publish(log, b"3", b"4")
            batch = await consumer.poll_batch(1)
            assert stored() == [3]
            assert await consumer.poll(0) is None
            assert stored() == [5]
            publish(log, b"5")
            assert await consumer.poll(1) is not None
        assert stored() == []

    run(main)
    view.close()

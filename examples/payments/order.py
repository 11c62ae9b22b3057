"""The order service: for each payment received, a command to send the invoice."""

from __future__ import annotations

import orjson

import shmbroker


def main() -> None:
    """Until Ctrl+C. The command is durable before the payment counts as seen to."""
    with shmbroker.connect() as client:
        for topic in ("payments", "invoices"):
            client.create_topic(topic, partitions=4, if_not_exists=True)
        with (
            client.producer() as producer,
            client.consumer("payments", group="orders") as payments,
        ):
            for batch in payments.batches():
                for record in batch.records():
                    payment = orjson.loads(record.value)
                    command = {"command": "send invoice", "payment": payment["id"],
                               "cents": payment["cents"]}  # fmt: skip
                    producer.send("invoices", orjson.dumps(command), key=record.key)
                producer.flush()  # raises if one failed: then nothing is committed
                commit(payments, batch)


def commit(consumer: shmbroker.GroupConsumer, batch: shmbroker.RecordBatch) -> None:
    """Whoever was put out meanwhile repeats nothing by itself: others go on in its place."""
    try:
        consumer.commit(batch)
    except (
        shmbroker.UnknownMember,
        shmbroker.FencedMemberEpoch,
        shmbroker.StaleMemberEpoch,
    ) as error:
        print(f"some payments will be seen to twice: {error}")


if __name__ == "__main__":
    main()

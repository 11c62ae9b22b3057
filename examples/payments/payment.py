"""The payment service: says what was paid. Usage: payment.py COUNT [FIRST]"""

from __future__ import annotations

import sys

import orjson

import shmbroker


def main(count: int, first: int = 0) -> None:
    """So many payments, numbered from `first`; each is on stable storage before the next."""
    with shmbroker.connect() as client:
        client.create_topic("payments", partitions=4, if_not_exists=True)
        with client.producer() as producer:
            for number in range(first, first + count):
                event = {"event": "payment received", "id": f"p{number}", "cents": 100 + number}
                receipt = producer.send("payments", orjson.dumps(event), key=b"p%d" % number)
                receipt.result()
                print(number, flush=True)  # whoever paid may be told


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

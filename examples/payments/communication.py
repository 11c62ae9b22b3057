"""The communication service: writes the letters. Usage: communication.py DIRECTORY"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import orjson

import shmbroker


def main(directory: Path) -> None:
    """Until Ctrl+C. A letter is in its place before the invoice counts as sent."""
    directory.mkdir(parents=True, exist_ok=True)
    with shmbroker.connect() as client:
        client.create_topic("invoices", partitions=4, if_not_exists=True)
        with client.consumer("invoices", group="communication", auto_commit_ms=100) as invoices:
            for record in invoices:  # what was asked past is committed by itself, nothing else
                invoice = orjson.loads(record.value)
                write_letter(directory, invoice["payment"], invoice["cents"])


def write_letter(directory: Path, payment: str, cents: int) -> None:
    """Once a payment, however often the invoice comes; whole, or not there at all."""
    letter = directory / f"{payment}.txt"
    if letter.exists():
        print(f"{payment}: the letter is written already", flush=True)
        return
    draft = directory / f".{payment}.{os.getpid()}"
    draft.write_text(f"Dear customer,\n\nwe thank you for {cents / 100:.2f}.\n")
    draft.rename(letter)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

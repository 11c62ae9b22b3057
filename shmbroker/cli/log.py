"""`log dump|repair`: placeholders until shmbroker.log.dump arrives."""

from __future__ import annotations

import typer

app = typer.Typer(help="Look into segments and indexes, and repair damage.", no_args_is_help=True)

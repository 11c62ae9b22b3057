"""`config show|check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shmbroker.cli.options import ConfigFile, Instance, Json, configuration, places

app = typer.Typer(help="Show and check the configuration.", no_args_is_help=True)


@app.command()
def show(instance: Instance = None, config: ConfigFile = None, json: Json = False) -> None:
    """Show each value and whence it came.

    Example: shmbroker config show --config broker.toml
    """
    loaded = configuration(places(instance, None, config))
    for key, value in loaded.config.flat().items():
        source = str(loaded.sources[key])
        if json:
            import orjson

            line = {"key": key, "value": value, "source": source}
            sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        else:
            from shmbroker.config import RULES

            print(f"{key} = {RULES[key].format(value)}  ({source})")


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A configuration (TOML).")]) -> None:
    """Check a configuration file.

    Example: shmbroker config check configs/default.toml
    """
    from shmbroker.config import load

    load(file)
    print(f"{file}: fine")

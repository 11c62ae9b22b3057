"""`config show|check`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from shmbroker.cli.options import ConfigFile, DataDir, Instance, Json, configuration, places
from shmbroker.config import RULES, Places

_READ = frozenset({
    "SHMBROKER_INSTANCE", "SHMBROKER_DATA_DIR", "SHMBROKER_CONFIG",
    "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR",
})  # fmt: skip

app = typer.Typer(help="Show and check the configuration.", no_args_is_help=True)


@app.command()
def show(
    instance: Instance = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show each place and value and whence it came: flag, environment, file:line or default.

    Example: shmbroker config show --config broker.toml
    """
    where = places(instance, data_dir, config)
    loaded = configuration(where)
    flags = {"instance": instance, "data_dir": data_dir, "config": config}
    for name, at in _places(where).items():
        _print(name, at, at or "none", _place_source(name, flags.get(name)), json)
    for key, value in loaded.config.flat().items():
        _print(key, value, RULES[key].format(value), str(loaded.sources[key]), json)


def _print(key: str, value: object, text: str, source: str, json: bool) -> None:
    if json:
        import orjson

        line = {"key": key, "value": value, "source": source}
        sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    else:
        print(f"{key} = {text}  ({source})")


def _places(where: Places) -> dict[str, str | None]:
    return {
        "instance": where.instance,
        "config": None if where.config_file is None else str(where.config_file),
        "data_dir": str(where.data_dir),
        "runtime_dir": str(where.runtime_dir),
    }


def _place_source(name: str, flag: object) -> str:
    """Whence a place came, by the rules of places.py."""
    if flag is not None:
        return f"flag --{name.replace('_', '-')}"
    xdg = {"config": "XDG_CONFIG_HOME", "data_dir": "XDG_DATA_HOME", "runtime_dir":
           "XDG_RUNTIME_DIR"}  # fmt: skip
    for variable in (f"SHMBROKER_{name.upper()}", xdg.get(name, "")):
        if variable in _READ and os.environ.get(variable):
            return f"environment {variable}"
    return "default"


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A configuration (TOML).")]) -> None:
    """Check a configuration file.

    Example: shmbroker config check configs/default.toml
    """
    from shmbroker.config import load

    load(file)
    print(f"{file}: fine")

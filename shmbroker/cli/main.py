"""The `shmbroker` command: its commands, its exit codes, and how errors reach a person.

Parses and prints, nothing else: what a command does is in `workers`, `client` and `log`, loaded
when the command runs. Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from shmbroker import errors
from shmbroker.cli.options import complain

EXIT_CODES = """Exit codes: 0 done, 1 failed, 2 usage, 3 no broker, 4 timeout, 5 damage found,
130 Ctrl+C.

Environment: SHMBROKER_INSTANCE and SHMBROKER_DATA_DIR stand in for --instance and --data-dir."""


def exit_code_of(error: errors.ShmbrokerError) -> int:
    """The exit code that says what kind of failure it was."""
    if isinstance(error, (errors.NoBroker, errors.BrokerGone)):
        return 3
    if isinstance(error, errors.TimedOut):
        return 4
    if isinstance(error, errors.DamagedLog):
        return 5
    if isinstance(error, errors.ConfigError) and error.file.startswith("--"):
        return 2
    return 1


class _Group(TyperGroup):
    """Turns errors of ours into one line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe is to be noticed here and not when Python ends
            return found
        except errors.ShmbrokerError as error:
            complain(f"shmbroker: {error}")
            raise typer.Exit(exit_code_of(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except typer.Abort as error:  # a question that was not answered
            if not _interrupted(error):
                raise typer.Exit(1) from None
            print(file=sys.stderr)  # behind the question
            raise typer.Exit(130) from None
        except BrokenPipeError:  # who read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            complain(f"shmbroker: {what}{error.strerror or error}")
            raise typer.Exit(1) from None


def _interrupted(error: BaseException) -> bool:
    return isinstance(error.__context__, KeyboardInterrupt)


app = typer.Typer(
    name="shmbroker",
    cls=_Group,
    help="A durable event log and message broker for one Linux host.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from shmbroker import __version__

        print(f"shmbroker {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def _register() -> None:
    from shmbroker.cli import (
        backup,
        broker,
        config,
        consume,
        demo,
        doctor,
        group,
        keys,
        log,
        perf,
        produce,
        topic,
    )

    app.command("up")(broker.up)
    app.command("down")(broker.down)
    app.command("status")(broker.status)
    app.command("doctor")(doctor.doctor)
    app.command("demo")(demo.demo)
    app.add_typer(topic.app, name="topic")
    app.command("produce")(produce.produce)
    app.command("consume")(consume.consume)
    app.add_typer(group.app, name="group")
    app.add_typer(log.app, name="log")
    app.command("backup")(backup.backup)
    app.command("restore")(backup.restore)
    app.add_typer(keys.app, name="keys")
    app.add_typer(config.app, name="config")
    app.add_typer(perf.app, name="perf")
    _say_exit_codes(app)


def _say_exit_codes(of: typer.Typer) -> None:
    """Every help ends with the exit codes, also those of the commands in groups."""
    for command in of.registered_commands:
        command.epilog = command.epilog or EXIT_CODES
    for group in of.registered_groups:
        if group.typer_instance is not None:
            group.typer_instance.info.epilog = EXIT_CODES
            _say_exit_codes(group.typer_instance)


_register()

if __name__ == "__main__":
    app()

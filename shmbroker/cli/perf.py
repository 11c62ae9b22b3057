"""`perf`: this host's storage devices and the broker on them, measured, with a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shmbroker.cli.options import complain

if TYPE_CHECKING:
    from shmbroker.perf.devices.run import Device, Options

app = typer.Typer(invoke_without_command=True)
_OUT = Path("build/perf")


@app.callback()
def perf(
    ctx: typer.Context,
    hdd: Annotated[
        Path | None, typer.Option("--hdd", help="A directory on a rotating disk.", metavar="DIR")
    ] = None,
    ssd: Annotated[
        Path | None, typer.Option("--ssd", help="A directory on an SSD.", metavar="DIR")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", help="Any device, any number of times.", metavar="NAME=DIR"),
    ] = None,
    model_hdd: Annotated[
        bool,
        typer.Option(
            "--model-hdd",
            help="A modelled rotating disk (FUSE): 150 MB/s, 8 ms a seek, 8.3 ms to be durable.",
        ),
    ] = False,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Other systems too (Kafka, Redis, …): fetched, started, stopped."
        ),
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", help="Only this system, any number of times.", metavar="NAME"),
    ] = None,
    no_devices: Annotated[
        bool, typer.Option("--no-devices", help="The systems alone, not the devices' own rows.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="What is fetched for them (build/peers).", metavar="DIR"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small rounds: devices under 3 minutes.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Large rounds; says the time and space it needs.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", help="Where results, page and pictures go.", metavar="DIR")
    ] = _OUT,
    anew: Annotated[bool, typer.Option("--anew", help="Replace the run that is in --out.")] = False,
) -> None:
    """Measure storage devices: what they are, their raw limits, the broker's share of these.

    Needs fio; --model-hdd also gcc, pkg-config, libfuse3-dev and fuse3. With --peers, other systems
    on the same devices, in the same report; Kafka needs java and mvn. A run that was interrupted
    goes on when the same command is given again. Ends with a page: report.html in --out.

    Example: shmbroker perf --ssd /srv/ssd --model-hdd --peers --quick
    """
    if ctx.invoked_subcommand is not None:
        return
    from shmbroker.perf.devices import effort

    if quick and full:
        raise typer.BadParameter("--quick or --full, not both")
    chosen = effort.QUICK if quick else effort.FULL if full else effort.ORDINARY
    devices = _devices(hdd, ssd, device or [], model_hdd, out)
    from shmbroker.perf.devices.run import Options
    from shmbroker.perf.peers import registry
    from shmbroker.perf.peers.run import CACHE

    if no_devices and not (peers or peer):
        raise typer.BadParameter("--no-devices leaves nothing to measure without --peers")
    try:
        systems = registry.chosen(peer or []) if peers or peer else ()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--peer") from None
    if no_devices and all(device.model is not None for device in devices):
        raise typer.BadParameter("the peers are measured on a real device: name one with --ssd DIR")
    _run(
        Options(devices, chosen, out.absolute(), anew, devices_too=not no_devices, peers=systems,
                cache=(cache or CACHE).absolute())
    )  # fmt: skip


def _devices(
    hdd: Path | None, ssd: Path | None, others: list[str], model_hdd: bool, out: Path
) -> tuple[Device, ...]:
    from shmbroker.perf.devices.model import Hdd
    from shmbroker.perf.devices.run import MODEL_NAME, Device

    found = [("SSD", ssd), ("HDD", hdd)]
    for text in others:
        name, equals, directory = text.partition("=")
        if not (name and equals and directory):
            raise typer.BadParameter(f"{text!r}: NAME=DIR is wanted", param_hint="--device")
        found.append((name, Path(directory)))
    devices = [Device(name, path.absolute()) for name, path in found if path is not None]
    if model_hdd:
        devices.append(Device(MODEL_NAME, (ssd or out).absolute(), Hdd()))
    names = [(each.name, each.model is not None) for each in devices]
    if not devices:
        raise typer.BadParameter("name a device: --hdd, --ssd, --device NAME=DIR or --model-hdd")
    if len(set(names)) < len(names):
        raise typer.BadParameter("two devices have the same name")
    return tuple(devices)


def _run(options: Options) -> None:
    from rich.console import Console

    from shmbroker.perf import page
    from shmbroker.perf.devices import run
    from shmbroker.perf.devices.fio import FioFailed
    from shmbroker.perf.devices.model import BadModel
    from shmbroker.perf.devices.needs import MissingTool
    from shmbroker.perf.devices.results import FILE, Unusable

    try:
        run.begun(options)  # before anything is said of time
        seconds, space = run.needs(options)
        for directory, nbytes in space.items():
            complain(f"{directory}: up to {nbytes / 1e9:.1f} GB, all of it given back")
        complain(f"about {seconds / 60:.0f} minutes at most, where disks and systems are slow")
        run.refuse_when_short(space)
        results = run.run(options, Console(stderr=True))
    except (BadModel, MissingTool, FioFailed, Unusable) as error:
        complain(f"shmbroker: {error}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on")
        raise typer.Exit(130) from None
    path = page.write(results, options.out)
    complain(f"results in {options.out / FILE}")
    print(path)
    if not all(row.values for _, rows in results.sections() for row in rows):
        complain("not all cases have a result: see the notes in the report")
        raise typer.Exit(1)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="results.json of one run.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="results.json of the other.", show_default=False)],
    everything: Annotated[bool, typer.Option("--all", help="Also what did not change.")] = False,
) -> None:
    """Compare two runs; exit code 1 when something became slower or is gone.

    A row counts as changed when its medians differ by more than 10 % and its rounds don't overlap.

    Example: shmbroker perf compare before/results.json after/results.json
    """
    from rich.console import Console

    from shmbroker.perf import compare as comparing
    from shmbroker.perf.devices.results import Unusable, load

    try:
        found = comparing.compare(load(before), load(after))
    except Unusable as error:
        complain(f"shmbroker: {error}")
        raise typer.Exit(1) from None
    Console(width=None if sys.stdout.isatty() else 160).print(comparing.table(found, everything))
    if any(one.verdict in ("slower", "gone") for one in found):
        raise typer.Exit(1)

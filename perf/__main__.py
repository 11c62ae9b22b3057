"""`python -m shmbroker.perf core`: the command line of the measurements."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from shmbroker.perf import core
from shmbroker.perf.cases import ALL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shmbroker.perf", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    names = "\n".join(f"  {case.name:16} {case.about}" for case in ALL)
    one = kinds.add_parser(
        "core",
        help="the figures of the core, each beside its limit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"cases:\n{names}",
    )
    one.add_argument("--smoke", action="store_true", help="the smallest size of everything")
    one.add_argument("--case", action="append", default=[], metavar="NAME", help="only this one")
    one.add_argument("--dir", type=Path, default=Path("build/bench"), help="where data is put")
    one.add_argument("--json", type=Path, metavar="FILE", help="every value, for machines")
    one.add_argument("--cores", type=int, default=2, help="for all of it; 0: all (default: 2)")
    one.add_argument("--data-gb", type=float, help="of clean data before `up` (default: 10)")
    one.add_argument("--rounds", type=int, help="that count (default: 5)")
    return parser


def main() -> int:
    """Returns 0 when every case ran, whether or not its target is met; 1 when one failed."""
    given = _parser().parse_args()
    console = Console(stderr=False, width=None if sys.stdout.isatty() else 200)
    try:
        core.chosen(given.case)
    except ValueError as error:
        print(f"shmbroker.perf: {error}", file=sys.stderr)
        return 2
    options = core.Options(
        directory=given.dir.absolute(),
        smoke=given.smoke,
        cases=tuple(given.case),
        json=given.json,
        cores=given.cores,
        data_gb=given.data_gb,
        rounds=given.rounds,
    )
    try:
        rows = core.run(options, console)
    except KeyboardInterrupt:
        print("shmbroker.perf: stopped", file=sys.stderr)
        return 130
    return 0 if all(row.values for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

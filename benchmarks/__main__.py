"""`python -m benchmarks`: measure, and print every figure beside the goal it is held against."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from benchmarks import console as console_pages
from benchmarks import measures
from benchmarks.databases import open_sites
from benchmarks.filling import Backend, Filling, Placement
from benchmarks.heartbeats import heartbeats
from benchmarks.measures import Sizes
from benchmarks.others.measure import others
from benchmarks.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.databases import Site
    from benchmarks.report import Figure

MEASURES: dict[str, Callable[[Site, Sizes], list[Figure]]] = {
    "detection": measures.detection,
    "recovery": measures.recovery,
    "memory": measures.memory,
    "writes": measures.writes,
    "console": console_pages.console,
    "others": others,
    "heartbeats": heartbeats,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 whatever the figures are: this is a report. Only a measure that fails is an error."""
    said = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    progress = Console(stderr=True)
    sizes = _sizes(said)
    with open_sites(set(said.on), said.directory, said.postgres) as sites:
        report = Report(facts=_machine(said.directory) | {"Jobs": _filled(sizes)})
        for site in sites:
            report.facts |= site.facts
        for name in said.measures or MEASURES:
            for site in sites:
                begin = time.monotonic()
                report.figures += MEASURES[name](site, sizes)
                progress.print(f"{name} on {site.backend}: {time.monotonic() - begin:.0f} s")
    report.show(console)
    if said.json is not None:
        said.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("measures", nargs="*", type=_measure, help=f"of {', '.join(MEASURES)}; without any all")
    parser.add_argument("--on", nargs="+", choices=get_args(Backend), default=[*get_args(Backend)])
    parser.add_argument(
        "--rounds", type=int, help=f"turns a contender takes ({Sizes.rounds}; {Sizes.write_rounds} beside writes)"
    )
    parser.add_argument("--stuck", type=int, help=f"stuck jobs to recover ({Sizes.stuck:,})")
    parser.add_argument("--placement", choices=get_args(Placement), default=Sizes.placement, help="of the stuck jobs")
    parser.add_argument("--memory", action="store_true", help="take memory's larger figure at 1,000,000 stuck jobs")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--postgres", choices=["15", "18"], help="the server's version; 15 where it is installed")
    parser.add_argument("--directory", type=Path, help="where the databases lie; without it the system's for temporary")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def _measure(name: str) -> str:
    if name not in MEASURES:
        raise argparse.ArgumentTypeError(f"there is no {name!r}; there are {', '.join(MEASURES)}")
    return name


def _sizes(said: argparse.Namespace) -> Sizes:
    quick = {
        "finished": 10_000, "fewer_finished": 1_000, "stuck": 1_000, "memory_stuck": (100, 1_000), "orm_stuck": 500,
        "detected": 100, "rounds": 2, "calls": 10, "baseline_seconds": 0.5,
    } if said.quick else {}  # fmt: skip
    chosen = {key: value for key in ("rounds", "stuck") if (value := getattr(said, key)) is not None}
    if said.rounds is not None:
        chosen["write_rounds"] = said.rounds
    large = {"memory_stuck": (10_000, 1_000_000)} if said.memory else {}
    return Sizes(**{**quick, "placement": said.placement, **large, **chosen})


def _filled(sizes: Sizes) -> str:
    return Filling(finished=sizes.finished, stuck=sizes.stuck, placement=sizes.placement).sentence


def _machine(directory: Path | None) -> dict[str, str]:
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return {
        "Machine": f"{os.cpu_count()} cores, load {load} at the start, {platform.system()}, {_file_system(directory)}",
        "Python": platform.python_version(),
    }


def _file_system(directory: Path | None) -> str:
    """Say what the databases lie on: figures from memory are not those of a disk."""
    place = str((directory or Path(tempfile.gettempdir())).resolve())
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "file system unknown"
    found = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    under = [(where, kind) for where, kind in found if place == where or place.startswith(where.rstrip("/") + "/")]
    kind = max(under, key=lambda each: len(each[0]))[1]
    return f"databases in memory ({kind}): no disk is measured" if kind == "tmpfs" else f"databases on {kind}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that databases are removed then, too
    sys.exit(main())

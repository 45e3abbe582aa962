"""`python -m benchmarks`: measure, print every figure beside the goal it is held against, and keep the record."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import platform
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from benchmarks import document
from benchmarks.console import console
from benchmarks.detection import detection
from benchmarks.filling import Backend, Filling, Placement
from benchmarks.heartbeats import heartbeats
from benchmarks.http import http
from benchmarks.killed import killed
from benchmarks.measures import QUICK, Sizes
from benchmarks.opening import open_sites
from benchmarks.others.measure import others
from benchmarks.recovery import memory, recovery
from benchmarks.report import Report, Section
from benchmarks.scale import scale
from benchmarks.sources import sources
from benchmarks.starting import starting
from benchmarks.writes import writes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.databases import Site
    from benchmarks.measures import Measure

MEASURES: dict[str, Measure] = {
    "detection": detection,
    "console": console,
    "recovery": recovery,
    "memory": memory,
    "writes": writes,
    "http": http,
    "sources": sources,
    "starting": starting,
    "killed": killed,
    "others": others,
    "heartbeats": heartbeats,
    "scale": scale,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 whatever the figures are; only a measure that fails is an error, and it stops no other."""
    said = _parser().parse_args(arguments)
    logging.getLogger("asyncmy").setLevel(logging.ERROR)  # it repeats what the server notes of our own migrations
    if said.document:
        document.write()
        return 0
    sizes = _sizes(said)
    with open_sites(set(said.on), said.directory, said.postgres) as sites:
        facts = _machine(said.directory) | {"Jobs": _filled(sizes)}
        for site in sites:
            facts |= site.facts
        report = Report(facts=facts, sections=[_measured(name, sites, sizes) for name in said.measures or MEASURES])
    report.show(Console(width=None if sys.stdout.isatty() else 200))
    if said.json is not None:
        said.json.write_text(document.as_text(report))
    if said.record:
        document.record(report, datetime.now(UTC).date())
    return int(any(section.problem for section in report.sections))


def _measured(name: str, sites: Iterable[Site], sizes: Sizes) -> Section:
    progress = Console(stderr=True)
    measure, begin = MEASURES[name], time.monotonic()
    section = Section(name=name, about=measure.__doc__ or "")
    for site in sites:
        since = time.monotonic()
        try:
            section.figures += measure(site, sizes.on(site.backend))
        except Exception as error:  # noqa: BLE001 - the others took minutes, too
            progress.print_exception()
            section.problem += f"on {site.backend}: {type(error).__name__}: {error} "
        progress.print(f"{name} on {site.backend}: {time.monotonic() - since:.0f} s")
    section.seconds = time.monotonic() - begin
    return section


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("measures", nargs="*", type=_measure, help=f"of {', '.join(MEASURES)}; without any all")
    parser.add_argument("--on", nargs="+", choices=get_args(Backend), default=[*get_args(Backend)])
    parser.add_argument("--rounds", type=int, help=f"turns a contender takes ({Sizes.rounds})")
    parser.add_argument("--stuck", type=int, help=f"stuck jobs to recover ({Sizes.stuck:,})")
    parser.add_argument("--placement", choices=get_args(Placement), default=Sizes.placement, help="of the stuck jobs")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--postgres", choices=["15", "18"], help="the server's version; 15 where it is installed")
    parser.add_argument("--directory", type=Path, help="where the databases lie; without it the system's for temporary")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--record", action="store_true", help=f"keep the figures, and write {document.PAGE} anew")
    parser.add_argument(
        "--document", action="store_true", help=f"only write {document.PAGE} anew, by the newest record"
    )
    return parser


def _measure(name: str) -> str:
    if name not in MEASURES:
        raise argparse.ArgumentTypeError(f"there is no {name!r}; there are {', '.join(MEASURES)}")
    return name


def _sizes(said: argparse.Namespace) -> Sizes:
    chosen = {key: value for key in ("rounds", "stuck") if (value := getattr(said, key)) is not None}
    return dataclasses.replace(QUICK if said.quick else Sizes(), placement=said.placement, **chosen)


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

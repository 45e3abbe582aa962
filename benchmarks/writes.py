"""How long a host's own writes take during a recovery."""

from __future__ import annotations

import json
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import measures
from benchmarks.filling import Backend, Filling
from benchmarks.measures import ROOT, Sizes, percentile
from benchmarks.report import Figure, Goal

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.databases import Database, Site

_GOALS: dict[Backend, Goal] = {"postgresql": Goal(bound=1.5), "sqlite": Goal(bound=100, unit=" ms")}


def writes(site: Site, sizes: Sizes) -> list[Figure]:
    """How long the host's own writes of single rows take without a sweep and during one."""
    filling = Filling(finished=sizes.finished, stuck=sizes.stuck, placement=sizes.placement)
    quiet: dict[str, list[float]] = {"swept": [], "other": []}
    busy: dict[str, list[float]] = {"swept": [], "other": []}
    for _ in range(sizes.write_rounds):
        with site.fresh(filling) as database:
            _collect(quiet, *_written(database, partial(_idle, sizes.baseline_seconds)))
            _collect(busy, *_written(database, partial(measures.run_task, "sweep", str(database.config))))
    return [
        figure
        for kind, what in (("swept", "of rows being swept"), ("other", "of finished rows"))
        for figure in _write_figures(site.backend, what, quiet[kind], busy[kind])
    ]


def _write_figures(backend: Backend, what: str, quiet: list[float], busy: list[float]) -> list[Figure]:
    figure = partial(Figure, database=backend, unit="ms")
    figures: list[Figure] = []
    for percent, goal in ((50, None), (99, _GOALS.get(backend))):
        without, during = percentile(quiet, percent), percentile(busy, percent)
        point = partial(figure, measure=f"host's writes, p{percent}")
        figures += [
            point(name=f"{what}, no sweep", values=[without]),
            point(name=f"{what}, in one", values=[during], ratios=[during / without], against="no sweep", goal=goal),
        ]
    longest = figure(measure="host's writes, longest", name=f"{what}, in one, of {len(busy):,}", values=[max(busy)])
    return [*figures, longest]


def _written(database: Database, beside: Callable[[], dict[str, Any]]) -> tuple[list[Any], dict[str, Any]]:
    """Return the writes of a host while something else goes on, and what that said."""
    command = measures.task_command("writer", database.backend, database.raw)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as host:
        assert host.stdin is not None
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
        host.stdin.write("go\n")
        host.stdin.flush()
        said = beside()
        host.stdin.close()
        written = json.loads(host.stdout.read())["writes"]
    assert host.returncode == 0
    return written, said


def _collect(into: dict[str, list[float]], written: list[Any], said: dict[str, Any]) -> None:
    """Keep the writes that began while it went on: starting and ending a process isn't a sweep."""
    for begin, kind, milliseconds in written:
        if said["begin"] <= begin <= said["end"]:
            into[kind].append(milliseconds)


def _idle(seconds: float) -> dict[str, Any]:
    begin = time.monotonic()
    time.sleep(seconds)
    return {"begin": begin, "end": time.monotonic()}

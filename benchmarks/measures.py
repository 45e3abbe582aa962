"""The measures. In each the contenders take turns, and a ratio is between neighbours in time."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from benchmarks import contenders
from benchmarks.filling import Backend, Filling, Placement
from benchmarks.report import Figure, Goal
from unstick.config import load_settings
from unstick.pipeline.looking import take_look
from unstick.pipeline.report import report_stats, report_stuck
from unstick.wiring import open_watched

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from benchmarks.databases import Database, Site
    from unstick.pipeline.watched import Watched

_ROOT = Path(__file__).parents[1]
_LONGEST_TASK = 600  # seconds; what takes longer doesn't end
_RECOVERY_GOALS: dict[Backend, Goal] = {
    "postgresql": Goal(bound=0.5, at_least=True, later=0.7),
    "sqlite": Goal(bound=0.35, at_least=True),
}
_WRITE_GOALS: dict[Backend, Goal] = {"postgresql": Goal(bound=1.5), "sqlite": Goal(bound=100, unit=" ms")}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    finished: int = 1_000_000
    fewer_finished: int = 100_000
    stuck: int = 100_000
    memory_stuck: tuple[int, int] = (10_000, 100_000)
    orm_stuck: int = 10_000
    detected: int = 1_000
    rounds: int = 3
    write_rounds: int = 1
    calls: int = 40
    baseline_seconds: float = 5
    placement: Placement = "even"


@dataclass(kw_only=True)
class Taken:
    """Values of one contender, one a round."""

    values: list[float] = field(default_factory=list)

    def over(self, other: Taken) -> list[float]:
        return [one / two for one, two in zip(self.values, other.values, strict=True)]


def recovery(site: Site, sizes: Sizes) -> list[Figure]:
    """Jobs recovered a second: the bare limit, the audited limit, Unstick, and a loop over ORM objects."""
    filling = Filling(finished=sizes.finished, stuck=sizes.stuck, placement=sizes.placement)
    runs: tuple[Callable[[Database], float], ...] = (
        lambda database: _limit(database, contenders.bare, sizes.stuck),
        lambda database: _limit(database, contenders.audited, sizes.stuck),
        lambda database: _rate(run_task("sweep", str(database.config)), sizes.stuck),
        lambda database: _rate(run_task("orm", database.url, str(sizes.orm_stuck)), sizes.orm_stuck),
    )
    bare, audited, ours, loop = taken = tuple(Taken() for _ in runs)
    for _ in range(sizes.rounds):
        for run, one in zip(runs, taken, strict=True):
            with site.fresh(filling) as database:
                one.values.append(run(database))
    rate = partial(Figure, measure=f"recovery of {sizes.stuck:,}", database=site.backend, unit="jobs/s")
    sweep = partial(rate, name="unstick sweep", values=ours.values)
    return [
        rate(name="bare UPDATE, nothing recorded", values=bare.values),
        rate(name="UPDATE and audit rows, at once", values=audited.values, ratios=audited.over(bare), against="bare"),
        rate(name=f"ORM loop over {sizes.orm_stuck:,}", values=loop.values),
        sweep(ratios=ours.over(bare), against="bare", goal=_RECOVERY_GOALS[site.backend]),
        sweep(ratios=ours.over(audited), against="audited"),
        sweep(ratios=ours.over(loop), against="ORM loop", goal=Goal(bound=8, at_least=True)),
    ]


def _limit(database: Database, statements: Callable[[Backend], tuple[str, ...]], stuck: int) -> float:
    seconds = database.execute(*statements(database.backend))
    failed = database.count("SELECT count(*) FROM ai_generation_jobs WHERE status = 'failed'")
    assert failed == stuck, f"{failed} jobs recovered instead of {stuck}"
    return stuck / seconds


def _rate(said: dict[str, Any], stuck: int) -> float:
    assert said["jobs"] == stuck, f"{said['jobs']} jobs recovered instead of {stuck}"
    return stuck / float(said["end"] - said["begin"])


Call = Callable[["Watched"], "Awaitable[object]"]


def detection(site: Site, sizes: Sizes) -> list[Figure]:
    """Milliseconds to find few stuck jobs among many finished ones, and among ten times as many."""
    few = Filling(finished=sizes.fewer_finished, stuck=sizes.detected)
    many = Filling(finished=sizes.finished, stuck=sizes.detected)
    with site.fresh(few) as small, site.fresh(many) as large:
        taken = asyncio.run(_alternate([small, large], sizes.calls))
    figures: list[Figure] = []
    for name, (at_few, at_many) in taken.items():
        fast, slow = percentile(at_few, 50), percentile(at_many, 50)
        figure = partial(Figure, measure="detection, p50", database=site.backend, unit="ms")
        figures += [
            figure(name=f"{name}, {few.finished:,} finished", values=[fast]),
            figure(
                name=f"{name}, {many.finished:,} finished", values=[slow],
                ratios=[slow / fast], against=f"{few.finished:,}", goal=Goal(bound=1.3),
            ),
        ]  # fmt: skip
    return figures


async def _alternate(databases: Sequence[Database], calls: int) -> dict[str, tuple[list[float], ...]]:
    measured: dict[str, Call] = {"report_stuck": report_stuck, "look": _look, "report_stats": report_stats}
    taken: dict[str, tuple[list[float], ...]] = {name: tuple([] for _ in databases) for name in measured}
    async with AsyncExitStack() as stack:
        watched = [await stack.enter_async_context(open_watched(load_settings(each.config))) for each in databases]
        for turn in range(-5, calls):  # the first ones reflect the table and fill caches
            for name, call in measured.items():
                for each, values in zip(watched, taken[name], strict=True):
                    begin = time.perf_counter()
                    await call(each)
                    if turn >= 0:
                        values.append((time.perf_counter() - begin) * 1000)
    return taken


async def _look(watched: Watched) -> object:
    return await watched.source.count_suspects(await take_look(watched))


def memory(site: Site, sizes: Sizes) -> list[Figure]:
    """The peak memory of a sweep's whole process, with few stuck jobs and with many."""
    peaks: list[float] = []
    for stuck in sizes.memory_stuck:
        filling = Filling(finished=sizes.fewer_finished, stuck=stuck)
        with site.fresh(filling) as database:
            said = run_task("sweep", str(database.config))
        site.forget(filling)
        assert said["jobs"] == stuck, f"{said['jobs']} jobs recovered instead of {stuck}"
        peaks.append(said["memory"])
    few, many = sizes.memory_stuck
    figure = partial(Figure, measure="memory of a sweep", database=site.backend, unit="MB")
    grown = partial(figure, ratios=[peaks[1] / peaks[0]], against=f"{few:,}", goal=Goal(bound=1.2))
    return [
        figure(name=f"{few:,} stuck", values=peaks[:1]),
        grown(name=f"{many:,} stuck", values=peaks[1:]),
    ]


def writes(site: Site, sizes: Sizes) -> list[Figure]:
    """How long the host's own writes of single rows take without a sweep and during one."""
    filling = Filling(finished=sizes.finished, stuck=sizes.stuck, placement=sizes.placement)
    quiet: dict[str, list[float]] = {"swept": [], "other": []}
    busy: dict[str, list[float]] = {"swept": [], "other": []}
    for _ in range(sizes.write_rounds):
        with site.fresh(filling) as database:
            _collect(quiet, *_written(database, partial(_idle, sizes.baseline_seconds)))
            _collect(busy, *_written(database, partial(run_task, "sweep", str(database.config))))
    return [
        figure
        for kind, what in (("swept", "of rows being swept"), ("other", "of finished rows"))
        for figure in _write_figures(site.backend, what, quiet[kind], busy[kind])
    ]


def _write_figures(backend: Backend, what: str, quiet: list[float], busy: list[float]) -> list[Figure]:
    figure = partial(Figure, database=backend, unit="ms")
    figures: list[Figure] = []
    for percent, goal in ((50, None), (99, _WRITE_GOALS[backend])):
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
    command = [sys.executable, "-m", "benchmarks.child", "writer", database.backend, database.raw]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=_ROOT, stdin=pipe, stdout=pipe, text=True) as host:
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


def run_task(*task: str) -> dict[str, Any]:
    """Run a task of `benchmarks.child` in a process of its own, without what our own environment says about Unstick."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNSTICK_")}
    command = [sys.executable, "-m", "benchmarks.child", *task]
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True, timeout=_LONGEST_TASK
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]

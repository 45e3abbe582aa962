"""What it costs to find few stuck jobs among ever more finished ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import contenders
from benchmarks.console import pages
from benchmarks.filling import TABLE, Filling, now
from benchmarks.report import Figure, Goal
from benchmarks.service import API, Visitor, metered, note, visiting
from unstick.pipeline.observing import observe
from unstick.pipeline.sweep import SweepOrder, sweep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from benchmarks.databases import Database, Site
    from benchmarks.measures import Sizes

_BARE, _FLOOR, _LOOK = "bare query", "the floor", "a sweep's look"
_GROWTH = Goal(bound=1.3)
_OF_FLOOR = Goal(bound=2)
_NOTHING_STUCK = Goal(bound=5, unit=" ms")

_API = {
    "GET /jobs/stuck": f"{API}/jobs/stuck",
    "GET /jobs/stuck, a thousand": f"{API}/jobs/stuck?limit=1000",
    "GET /stats": f"{API}/stats",
}
Call = Callable[[], Awaitable[object]]


@dataclass(kw_only=True)
class _Times:
    """Milliseconds of one call to one database: of the whole, and of its statements alone."""

    whole: list[float] = field(default_factory=list)
    statements: list[float] = field(default_factory=list)


def detection(site: Site, sizes: Sizes) -> list[Figure]:
    """Milliseconds of each call, p50, by the number of finished jobs it is made among.

    *Bare query* reads the stuck jobs by the right index and through the driver itself; *the floor* reads the same rows
    from a table that holds nothing else. *A sweep's look* is all that `unstick sweep --dry-run` asks and works out.
    """
    fillings = [Filling(finished=finished, stuck=sizes.detected) for finished in sizes.histories]
    databases = [site.original(filling) for filling in fillings]
    for database in databases:
        database.execute(contenders.only_stuck(database.backend))
    taken = asyncio.run(_alternate(databases, sizes))
    figures = [*_by_history(site, sizes.histories, taken), *_in_the_database(site, sizes.histories, taken)]
    figures += _nothing_stuck(site, databases[-1], fillings[-1], sizes)
    figures += _without_index(site, databases[-1], fillings[-1], sizes)
    for filling in fillings:
        site.forget(filling)
    return figures


def _by_history(site: Site, histories: Sequence[int], taken: Mapping[str, Sequence[_Times]]) -> Iterable[Figure]:
    for name, each in taken.items():
        ours = name not in (_BARE, _FLOOR)
        values = [median(times.whole if ours else times.statements) for times in each]
        figure = partial(Figure, measure="detection, p50", database=site.backend, name=name, unit="ms")
        *others, (most, slowest) = zip(histories, values, strict=True)
        for finished, value in others:
            yield figure(at=f"{finished:,} finished", values=[value])
        yield figure(
            at=f"{most:,} finished", values=[slowest], ratios=[slowest / values[0]], against=f"{histories[0]:,}",
            goal=_GROWTH if ours else None,
        )  # fmt: skip


def _in_the_database(site: Site, histories: Sequence[int], taken: Mapping[str, Sequence[_Times]]) -> Iterable[Figure]:
    """Hold the statements alone against the floor: what Python makes of their rows is in the other figures."""
    for name in (*_API, _LOOK):
        for place, finished in enumerate(histories):
            value, floor = (median(taken[each][place].statements) for each in (name, _FLOOR))
            yield Figure(
                measure="detection, statements alone, p50", database=site.backend, name=name,
                at=f"{finished:,} finished", unit="ms", values=[value], ratios=[value / floor], against=_FLOOR,
                goal=_OF_FLOOR if name == _LOOK and finished == histories[-1] else None,
            )  # fmt: skip


def _nothing_stuck(site: Site, database: Database, filling: Filling, sizes: Sizes) -> list[Figure]:
    """Have all jobs show life, and look again."""
    at = now(database.backend)
    stuck = contenders.stuck(database.backend)
    database.execute(f"UPDATE {TABLE} SET started_at = {at}, updated_at = {at} WHERE {stuck}")
    times = asyncio.run(_look_again(database, sizes.calls, sizes.warm_up))
    figure = partial(Figure, measure="a look with nothing stuck, p50", database=site.backend, unit="ms")
    among = f"{filling.finished:,} finished"
    return [
        made
        for name, each in times.items()
        for made in (
            figure(
                name=f"{name}, its statements alone", at=among, values=[median(each.statements)], goal=_NOTHING_STUCK
            ),
            figure(name=f"{name}, the whole", at=among, values=[median(each.whole)]),
        )
    ]


def _without_index(site: Site, database: Database, filling: Filling, sizes: Sizes) -> list[Figure]:
    """Take the index away, and see how long whoever asks then waits."""
    on = f" ON {TABLE}" if database.backend == "mariadb" else ""
    with database.connected() as run:
        run(f"DROP INDEX {TABLE}_open{on}")
    times = asyncio.run(_look_again(database, max(1, sizes.calls // 10), warm_up=1))
    return [
        Figure(
            measure="without the index, p50", database=site.backend, name=name, at=f"{filling.finished:,} finished",
            unit="ms", values=[median(each.whole)],
        )
        for name, each in times.items()
    ]  # fmt: skip


async def _look_again(database: Database, calls: int, warm_up: int) -> dict[str, _Times]:
    async with visiting(database) as visitor:
        asked: dict[str, Call] = {
            _LOOK: partial(_look, visitor),
            "what the watch observes": partial(observe, visitor.watched),
        }
        taken = {name: _Times() for name in asked}
        for turn in range(-warm_up, calls):
            for name, call in asked.items():
                await _time(taken[name] if turn >= 0 else _Times(), call)
    return taken


async def _alternate(databases: Sequence[Database], sizes: Sizes) -> dict[str, list[_Times]]:
    """Make each call to each database in turn, again and again."""
    async with AsyncExitStack() as stack:
        asked = [await stack.enter_async_context(_asking(each)) for each in databases]
        taken = {name: [_Times() for _ in asked] for name in asked[0]}
        for turn in range(-sizes.warm_up, sizes.calls):
            for name, each in taken.items():
                for calls_to_one, times in zip(asked, each, strict=True):
                    await _time(times if turn >= 0 else _Times(), calls_to_one[name])
    return taken


async def _time(times: _Times, call: Call) -> None:
    with metered() as spent:
        begin = time.perf_counter()
        await call()
        times.whole.append((time.perf_counter() - begin) * 1000)
    times.statements.append(sum(spent))


@asynccontextmanager
async def _asking(database: Database) -> AsyncIterator[dict[str, Call]]:
    """Lend all calls to one database by name."""
    async with visiting(database) as visitor, _reading(database) as read:
        paths = {**_API, **{f"console, {page}": path for page, path in pages(await visitor.oldest()).items()}}
        yield {
            _BARE: partial(read, contenders.listing(database.backend)),
            _FLOOR: partial(read, contenders.floor()),
            _LOOK: partial(_look, visitor),
            **{name: partial(visitor.get, path) for name, path in paths.items()},
        }


async def _look(visitor: Visitor) -> object:
    return await sweep(visitor.watched, SweepOrder(actor="benchmark", dry_run=True))


@asynccontextmanager
async def _reading(database: Database) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Lend what reads through the driver itself, in a thread, for the service's loop is this one's."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread, ExitStack() as stack:
        run = await loop.run_in_executor(thread, stack.enter_context, database.connected())

        def timed(statement: str) -> float:
            begin = time.perf_counter()
            run(statement)
            return (time.perf_counter() - begin) * 1000

        async def read(statement: str) -> None:
            note(await loop.run_in_executor(thread, timed, statement))

        try:
            yield read
        finally:
            await loop.run_in_executor(thread, stack.close)

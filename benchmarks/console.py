"""How long each page of the console takes among a million finished jobs, with many stuck."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from benchmarks.filling import Filling
from benchmarks.measures import percentile
from benchmarks.report import Figure, Goal
from benchmarks.service import visiting

if TYPE_CHECKING:
    from benchmarks.databases import Database, Site
    from benchmarks.measures import Sizes

_GOAL = Goal(bound=200, unit=" ms")
_FIRST = {
    "stuck, older": "/stuck?older={minutes}",
    "stuck, older, newest first": "/stuck?older={minutes}&sort=newest",
    "stuck, older, by reason": "/stuck?older={minutes}&reason=silent",
    "stuck, by kind": "/stuck?kind=quiz{stars}",
    "stuck, by a kind that none has": "/stuck?kind=none{stars}",
    "stuck, by text": "/stuck?text={minutes}",
    "replay": "/replay?running={minutes}",
    "replay, of both states": "/replay?running={minutes}&queued=5",
}


def console(site: Site, sizes: Sizes) -> list[Figure]:
    """Milliseconds from a request to the whole page, by the service with its watch, without a network between.

    *First reads* ask for something that nobody has asked for before, so that no answer is remembered.
    """
    if site.backend == "mariadb":
        return []  # the goal names two
    with site.fresh(Filling(finished=sizes.finished, stuck=sizes.stuck, placement=sizes.placement)) as database:
        taken = asyncio.run(_taken(database, sizes))
    return [
        Figure(
            measure=measure,
            database=site.backend,
            name=page,
            unit="ms",
            values=[percentile(values, 95)],
            goal=_GOAL,
        )
        for (measure, page), values in taken.items()
    ]


def pages(stuck: object) -> dict[str, str]:
    """Return the pages by what they show, with the story of one stuck job among them."""
    paths = {"overview": "/", "one job": f"/jobs/main/{stuck}", "stuck, by reason": "/stuck?reason=silent"}
    others = {name: f"/{name}" for name in ("stuck", "sweeps", "audit", "policy", "replay", "sources")}
    return {name: f"/console{path}" for name, path in {**paths, **others}.items()}


def _first_reads(turn: int) -> dict[str, str]:
    """Return pages with other filters at each turn."""
    asked = {"minutes": 31 + turn, "stars": "*" * (1 + turn)}
    return {name: f"/console{path.format_map(asked)}" for name, path in _FIRST.items()}


async def _taken(database: Database, sizes: Sizes) -> dict[tuple[str, str], list[float]]:
    taken: dict[tuple[str, str], list[float]] = {}
    async with visiting(database) as person:
        again = pages(await person.oldest())
        for turn in range(sizes.warm_up + sizes.calls):
            for measure, paths in (("console, p95", again), ("console, first reads, p95", _first_reads(turn))):
                for page, path in paths.items():
                    begin = time.perf_counter()
                    await person.get(path)
                    if turn >= sizes.warm_up:
                        taken.setdefault((measure, page), []).append((time.perf_counter() - begin) * 1000)
    return taken

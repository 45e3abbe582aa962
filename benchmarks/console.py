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


def console(site: Site, sizes: Sizes) -> list[Figure]:
    """Milliseconds from a request to the whole page, by the service with its watch, without a network between."""
    if site.backend == "mariadb":
        return []  # the goal names two
    with site.fresh(Filling(finished=sizes.finished, stuck=sizes.stuck, placement=sizes.placement)) as database:
        taken = asyncio.run(_taken(database, sizes))
    return [
        Figure(
            measure="console, p95",
            database=site.backend,
            name=page,
            unit="ms",
            values=[percentile(values, 95)],
            goal=_GOAL,
        )
        for page, values in taken.items()
    ]


def pages(stuck: object) -> dict[str, str]:
    """Return the pages by what they show, with the story of one stuck job among them."""
    paths = {"overview": "/", "one job": f"/jobs/main/{stuck}", "stuck, by reason": "/stuck?reason=silent"}
    others = {name: f"/{name}" for name in ("stuck", "sweeps", "audit", "policy", "replay", "sources")}
    return {name: f"/console{path}" for name, path in {**paths, **others}.items()}


async def _taken(database: Database, sizes: Sizes) -> dict[str, list[float]]:
    async with visiting(database) as person:
        paths = pages(await person.oldest())
        taken: dict[str, list[float]] = {page: [] for page in paths}
        for turn in range(-sizes.warm_up, sizes.calls):
            for page, path in paths.items():
                begin = time.perf_counter()
                await person.get(path)
                if turn >= 0:
                    taken[page].append((time.perf_counter() - begin) * 1000)
    return taken

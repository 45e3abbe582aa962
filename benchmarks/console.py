"""How long each page of the console takes among a million finished jobs, with many stuck."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx
from pydantic import SecretStr

from benchmarks.filling import Filling
from benchmarks.measures import percentile
from benchmarks.report import Figure, Goal
from unstick.api.auth import mint_token
from unstick.config import load_settings
from unstick.domain.access import Role
from unstick.domain.job import JobState
from unstick.pipeline.looking import take_look
from unstick.wiring import create_service, open_watched

if TYPE_CHECKING:
    from benchmarks.databases import Database, Site
    from benchmarks.measures import Sizes

_SECRET = SecretStr("of no worth: it signs what this process alone reads")
_WARM_UP = 3
_GOAL = Goal(bound=200, unit=" ms")


_REPEATED = (
    "/",
    "/stuck",
    "/stuck?reason=silent",
    "/jobs/main/{job}",
    "/sweeps",
    "/audit",
    "/policy",
    "/replay",
    "/sources",
)
_FIRST = (
    "/stuck?older={minutes}",
    "/stuck?older={minutes}&sort=newest",
    "/stuck?older={minutes}&reason=silent",
    "/stuck?kind=quiz{stars}",
    "/stuck?kind=none{stars}",
    "/stuck?text={minutes}",
    "/replay?running={minutes}",
    "/replay?running={minutes}&queued=5",
)
"""Each time with another value, so that nobody has asked for the same before."""


def console(site: Site, sizes: Sizes) -> list[Figure]:
    """Milliseconds from a request to the whole page, by the service with its watch, without a network between."""
    with site.fresh(Filling(finished=sizes.finished, stuck=sizes.stuck, placement=sizes.placement)) as database:
        taken = asyncio.run(_pages(database, sizes.calls))
    return [
        Figure(
            measure="console, first read, p95" if page in _FIRST else "console, p95",
            database=site.backend,
            name=page,
            unit="ms",
            values=[percentile(values, 95)],
            goal=_GOAL,
        )
        for page, values in taken.items()
    ]


async def _pages(database: Database, calls: int) -> dict[str, list[float]]:
    settings = load_settings(database.config).model_copy(update={"secret_key": _SECRET})
    async with open_watched(settings) as watched:
        [stuck] = await watched.source.list_suspects(await take_look(watched), JobState.RUNNING, limit=1, after=None)
    service = create_service(settings)
    service.state.stopping = False
    bearer = mint_token(_SECRET, role=Role.ADMIN, subject="bench", lifetime=timedelta(hours=1), auth=settings.auth)
    taken: dict[str, list[float]] = {page: [] for page in (*_REPEATED, *_FIRST)}
    async with (
        service.router.lifespan_context(service),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(service),
            base_url="http://unstick.test/console",
            headers={"Authorization": f"Bearer {bearer}"},
            timeout=60,
        ) as person,
    ):
        for turn in range(-_WARM_UP, calls):
            number = turn + _WARM_UP
            asked = {"job": stuck.id, "minutes": 31 + number, "stars": "*" * (1 + number)}
            for page, values in taken.items():
                begin = time.perf_counter()
                (await person.get(page.format_map(asked))).raise_for_status()
                if turn >= 0:
                    values.append((time.perf_counter() - begin) * 1000)
    return taken

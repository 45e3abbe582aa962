"""What many sources in one service cost when nothing is stuck."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING

import psutil
from sqlalchemy.schema import CreateIndex, CreateTable
from tests.jobs import jobs_table

from benchmarks.databases import toml
from benchmarks.filling import Filling
from benchmarks.report import Figure, Goal
from benchmarks.service import unstick_serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.databases import Database, Site
    from benchmarks.measures import Sizes

_MEMORY, _BUSY = Goal(bound=150, unit=" MB"), Goal(bound=2, unit=" %")
_WITHIN = 120


def sources(site: Site, sizes: Sizes) -> list[Figure]:
    """The memory of one `unstick serve` over many jobs tables, and its share of one core, when nothing is stuck.

    Each source is observed every minute and swept every ten, as is the default. The share is taken over a minute, after
    all have been looked at once.
    """
    if site.backend != "postgresql":
        return []
    with site.fresh(Filling(finished=sizes.histories[0], stuck=0)) as database:
        config = _many(site, database, sizes.sources)
        with unstick_serve(config) as served:
            began = served.seconds
            _wait_until_all_are_seen(served.read, sizes.sources)
            busy, memory = _watched(psutil.Process(served.pid), sizes.idle_seconds)
    figure = partial(
        Figure, measure="many sources in one service", database=site.backend, at=f"{sizes.sources} sources"
    )
    return [
        figure(name="memory", unit="MB", values=[memory], goal=_MEMORY),
        figure(name="share of a core", unit="%", values=[busy], goal=_BUSY),
        figure(name="start to first answer", unit="s", values=[began]),
    ]


def _many(site: Site, database: Database, number: int) -> Path:
    """Make jobs tables, each a source of its own, and return the configuration that names them."""
    names = [f"jobs_{place}" for place in range(number)]
    for table in (jobs_table(name=name) for name in names):
        site.prepare(database, CreateTable(table), *(CreateIndex(index) for index in table.indexes))
    config = database.config.with_name("many.toml")
    config.write_text("\n".join(toml(database.url, table=name, source=name) for name in names))
    return config


def _wait_until_all_are_seen(read: Callable[[str], str], number: int) -> None:
    deadline = time.monotonic() + _WITHIN
    while len(re.findall(r"^unstick_source_up\{.*\} 1", read("/metrics"), re.MULTILINE)) < number:
        assert time.monotonic() < deadline, "not all sources were looked at"
        time.sleep(0.1)


def _watched(process: psutil.Process, seconds: float) -> tuple[float, float]:
    """Return the share of a core that a process takes meanwhile, and its memory at the end."""
    before, begin = sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(seconds)
    spent = sum(process.cpu_times()[:2]) - before
    return 100 * spent / (time.monotonic() - begin), process.memory_info().rss / 2**20

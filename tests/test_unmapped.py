"""Words that open jobs hold and nobody mapped are found on every database, in a bounded look at the newest jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.jobs import COLUMNS, STATES, declared, jobs_table, open_bench
from tests.servers import EACH_KIND
from unstick.domain.job import JobState
from unstick.sql import unmapped as unmapped_module
from unstick.sql.connections import EngineConnections
from unstick.sql.unmapped import unmapped_words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.jobs import SqlBench
    from tests.servers import Database

DATABASES = EACH_KIND


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    bench = await open_bench(database)
    yield bench
    await bench.close()


async def found(bench: SqlBench, *, running: str = "running", columns: Mapping[str, str] = COLUMNS) -> tuple[str, ...]:
    jobs = declared(jobs_table(), columns=columns, states={**STATES, JobState.RUNNING: (running,)})
    return await unmapped_words(EngineConnections(bench.engine), jobs)


async def put(bench: SqlBench, *words: str, over: bool = False) -> None:
    now = await bench.source.clock()
    await bench.put(*({"status": word, "completed_at": bench.store(now) if over else None} for word in words))


async def test_the_word_that_a_mistyped_one_stood_for_is_found(bench: SqlBench) -> None:
    await put(bench, "queued", "running", "running", "delayed")
    assert await found(bench) == ()
    assert await found(bench, running="runing") == ("running",)


async def test_the_commonest_word_comes_first(bench: SqlBench) -> None:
    await put(bench, "paused", "halted", "paused")
    assert await found(bench) == ("paused", "halted")


async def test_a_word_that_only_finished_jobs_hold_is_nobodys_concern(bench: SqlBench) -> None:
    await put(bench, "archived", over=True)
    assert await found(bench) == ()


async def test_where_nothing_tells_which_jobs_are_over_every_word_counts(bench: SqlBench) -> None:
    await put(bench, "archived", over=True)
    columns = {key: name for key, name in COLUMNS.items() if key != "completed_at"}
    assert await found(bench, columns=columns) == ("archived",)


async def test_letter_case_counts_where_it_counts_for_the_database(bench: SqlBench) -> None:
    await put(bench, "running")
    same = bench.engine.dialect.name in ("mysql", "mariadb")
    assert await found(bench, running="RUNNING") == (() if same else ("running",))


async def test_no_more_than_the_newest_jobs_are_looked_at(bench: SqlBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmapped_module, "NEWEST_JOBS", 2)
    await put(bench, "paused", "queued")
    assert await found(bench) == ("paused",)
    await put(bench, "queued")
    assert await found(bench) == ()

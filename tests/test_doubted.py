"""A state's word that no job holds is doubted where the table says otherwise, and nowhere else."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.jobs import COLUMNS, STATES, declared, jobs_table, open_bench
from tests.servers import EACH_KIND
from unstick.config import Settings
from unstick.domain.doubted_word import DoubtedWord
from unstick.domain.job import JobState
from unstick.sql.connections import EngineConnections
from unstick.sql.doubted import doubted_words
from unstick.wiring import check_sources

if TYPE_CHECKING:
    import pytest

    from tests.jobs import SqlBench
    from tests.servers import Database

DATABASES = EACH_KIND
RUNNING, FAILED = JobState.RUNNING, JobState.FAILED


async def doubted(bench: SqlBench, **words: str) -> dict[str, DoubtedWord]:
    """Ask of a mapping in which some states' words are mistyped."""
    mistyped = {JobState(state): (word,) for state, word in words.items()}
    jobs = declared(bench.table, states={**STATES, **mistyped})
    return {each.word: each for each in await doubted_words(EngineConnections(bench.engine), jobs)}


async def test_a_word_that_no_job_holds_is_doubted_where_jobs_hold_what_it_was_meant_to_be(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await open_bench(database)
    await bench.put({"status": "completed"}, {"status": "archived"})
    assert await doubted(bench) == {}
    assert await doubted(bench, running="runing", failed="faild") == {}
    await bench.put({"status": "running"}, {"status": "failed"})
    assert await doubted(bench, running="runing", failed="faild") == {
        "runing": DoubtedWord(word="runing", state=RUNNING, held=("running",)),
        "faild": DoubtedWord(word="faild", state=FAILED, held=("failed",)),
    }
    assert (await doubted(bench, running="executing"))["executing"].held == ("running",)
    assert (await doubted(bench, cancelled="archivd"))["archivd"].held == ("archived",)
    told_apart = bench.engine.dialect.name != "mysql"
    assert list(await doubted(bench, running="RUNNING")) == (["RUNNING"] if told_apart else [])
    await bench.put({"status": "processing"})
    assert await doubted(bench) == {}
    await bench.close()

    section = {"url": database.url, "table": bench.table.fullname, "columns": COLUMNS}
    states = {state: list(words) for state, words in STATES.items()} | {RUNNING: "runing"}
    settings = Settings.model_validate({"sources": {"main": section | {"states": states}}})
    with caplog.at_level(logging.WARNING, "unstick"):
        await check_sources(settings)
    assert "`states` of source 'main' names 'runing' for running" in caplog.text


async def test_a_word_that_a_check_forbids_is_doubted_and_one_that_it_allows_never(database: Database) -> None:
    words = ", ".join(f"'{word}'" for several in STATES.values() for word in (*several, "runing"))
    for allowed, expected in ((words.replace("'runing', ", "").replace(", 'runing'", ""), ["runing"]), (words, [])):
        bench = await open_bench(database, jobs_table(sa.CheckConstraint(f"status IN ({allowed})")))
        await bench.put({"status": "running"}, {"status": "failed"})
        found = await doubted(bench, running="runing")
        assert list(found) == expected
        assert all("running" in each.allowed and each.held == () for each in found.values())
        async with bench.engine.begin() as connection:
            await connection.run_sync(bench.table.drop)
        await bench.close()

"""A read that somebody's lock keeps waiting is given up in time, and told in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.jobs import open_bench
from unstick.domain.errors import SourceUnavailableError
from unstick.pipeline.report import report_stuck

if TYPE_CHECKING:
    from tests.servers import Database

LOCKS = {
    "sqlite": ("COMMIT", "BEGIN EXCLUSIVE"),
    "postgresql": ("LOCK TABLE ai_generation_jobs",),
    "mysql": ("LOCK TABLES ai_generation_jobs WRITE",),
}


async def test_a_lock_that_keeps_every_reader_out_is_told_as_such(database: Database) -> None:
    """It is held from the start: not even the table's columns can be looked up."""
    bench = await open_bench(database)
    watched = bench.watched()
    async with bench.engine.connect() as other:
        for statement in LOCKS[database.backend]:
            await other.exec_driver_sql(statement)
        with pytest.raises(SourceUnavailableError, match="gave no answer in the time a guest waits"):
            await report_stuck(watched)
    await bench.close()

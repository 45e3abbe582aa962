"""A sweep that is stopped by a signal on its way: a real process, on a real server, in the middle of a write."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.jobs import COLUMNS, STATES, open_bench
from unstick.domain.audit import AuditOutcome
from unstick.domain.job import JobState
from unstick.testing.conformance import Ages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.jobs import SqlBench
    from tests.servers import Database

JOBS = "ai_generation_jobs"
SLOW = {
    "postgresql": (
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(60); RETURN NEW; END$$",
        f"CREATE TRIGGER slow BEFORE UPDATE ON {JOBS} FOR EACH ROW EXECUTE FUNCTION slowly()",
    ),
    "mysql": (f"CREATE TRIGGER slow BEFORE UPDATE ON {JOBS} FOR EACH ROW DO SLEEP(60)",),
}
"""An update of a job takes a minute: long enough to be stopped in the middle of it."""
IS_WRITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND state = 'User sleep'",
}


@pytest.fixture(params=["postgres_database", "mariadb_database"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlBench]:
    database: Database = request.getfixturevalue(request.param)
    bench = await open_bench(database)
    await bench.execute(*SLOW[database.backend])
    states = {state.value: list(words) for state, words in STATES.items()}
    settings = {"url": database.url, "table": JOBS, "columns": COLUMNS, "states": states}
    lines = (f"{key} = {_toml(value)}" for key, value in settings.items())
    (tmp_path / "unstick.toml").write_text("\n".join(("[sources.main]", *lines)))
    yield bench
    await bench.close()


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


async def _until_it_writes(bench: SqlBench) -> None:
    deadline = time.monotonic() + 30
    async with bench.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        while not (await connection.exec_driver_sql(IS_WRITING[_backend(bench)])).scalar_one():
            assert time.monotonic() < deadline


def _backend(bench: SqlBench) -> str:
    return bench.engine.url.get_backend_name()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
async def test_a_sweep_that_is_stopped_records_its_end_and_leaves_the_job(
    bench: SqlBench, tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    job_id = await bench.add(JobState.RUNNING, Ages(started=timedelta(hours=2)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNSTICK_")}
    sweeping = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "unstick", "sweep", cwd=tmp_path, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await _until_it_writes(bench)
        sweeping.send_signal(sent)
        said = await asyncio.wait_for(sweeping.communicate(), timeout=30)
    finally:
        if sweeping.returncode is None:
            sweeping.kill()
            await sweeping.wait()

    assert (sweeping.returncode, said) == (status, (b"", b""))
    started, ended = await bench.audit()
    assert (started.outcome, ended.outcome) == (AuditOutcome.STARTED, AuditOutcome.FAILED)
    assert (ended.operation_id, ended.result["problem"]) == (started.id, "interrupted")
    assert (await bench.get(job_id)).job.state is JobState.RUNNING
    assert await bench.recoveries() == []

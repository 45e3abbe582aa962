"""Undo as a person, a script and an app ask for it: the command, the two HTTP calls, and the router in a host's app."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from tests.api_support import AUTH, SECRET, UNDO_JOB, UNDO_OPERATION, assert_problem, client
from tests.jobs import open_bench
from tests.test_cli import _empty_directory, embedded, jobs, rows, run, sentence, sqlite
from unstick.admin import admin_router
from unstick.api.auth import bearer_principal
from unstick.api.factory import create_app
from unstick.domain.access import Principal, Role
from unstick.domain.job import Job, JobState
from unstick.domain.policy import Policy
from unstick.pipeline.shapes import UndoShape
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.watched import Watched
from unstick.testing.memory import MemoryJobs, MemoryLedger, MemorySource, StoredJob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from tests.test_cli import Run

__all__ = ["_empty_directory", "embedded", "jobs", "run"]


def states() -> dict[int, str]:
    return {row["id"]: row["status"] for row in rows("SELECT id, status FROM jobs")}


def swept(run: Run) -> str:
    return str(run("sweep", "--json").document["operation_id"])


# The command


def test_undo_puts_back_what_a_sweep_did_and_says_so(run: Run, jobs: dict[str, int]) -> None:
    before = rows("SELECT * FROM jobs")
    operation = swept(run)
    assert rows("SELECT * FROM jobs") != before

    ran = run("undo", operation, "--reason", "the workers were only slow")

    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[:2] == ["Put back 2 job(s).", "  back to      queued 1, running 1"]
    assert rows("SELECT * FROM jobs") == before
    [begun] = rows("SELECT * FROM unstick_audit WHERE call = 'jobs.undo' AND outcome = 'started'")
    assert '"reason": "the workers were only slow"' in begun["parameters"]
    assert begun["actor"].startswith("cli:")
    assert f"operation {begun['id']}" in ran.out


def test_undo_names_what_it_could_not_and_why_and_ends_with_2(run: Run, jobs: dict[str, int]) -> None:
    operation = swept(run)
    with sqlite() as connection:
        connection.execute("UPDATE jobs SET status = 'completed' WHERE id = ?", (jobs["running"],))

    foreseen = run("undo", operation, "--dry-run")
    said = run("undo", operation, "--json")

    why = "it was changed since: status is now completed"
    for ran in (foreseen, said):
        assert ran.status == 2
        assert ran.err == f"unstick: job {jobs['running']} could not be undone: {why}\n"
    assert foreseen.out.startswith("Would put back 1 job(s). 1 could not be undone; `failures` says why. Nothing was")
    assert said.document.keys() == UndoShape.__annotations__.keys() - {"would_undo"}
    assert said.document["undone_jobs"] == {"queued": 1, "running": 0, "total": 1}
    assert said.document["failures"] == [{"id": str(jobs["running"]), "state": "running", "detail": why}]
    assert states()[jobs["running"]] == "completed"
    assert states()[jobs["queued"]] == "queued"


def test_undo_of_one_job_leaves_the_others(run: Run, jobs: dict[str, int]) -> None:
    operation = swept(run)
    ran = run("undo", operation, "--job", str(jobs["queued"]), "--source", "main", "--json")
    assert ran.document["undone_jobs"]["total"] == 1
    assert (states()[jobs["queued"]], states()[jobs["running"]]) == ("queued", "failed")


def test_what_is_undone_or_was_never_done_is_one_sentence(run: Run, jobs: dict[str, int]) -> None:
    operation = swept(run)
    undo = str(run("undo", operation, "--json").document["operation_id"])
    assert "undone already" in sentence(run("undo", operation))
    assert "is an undo" in sentence(run("undo", undo))
    assert "There is no operation 99" in sentence(run("undo", "99"))
    assert run("undo", "soon").status == 2


def test_more_jobs_than_are_named_are_counted(run: Run, jobs: dict[str, int]) -> None:
    with sqlite() as connection:
        for _ in range(12):
            connection.execute("INSERT INTO jobs (job_type, status, started_at) VALUES ('a', 'running', '2020-01-01')")
    operation = swept(run)
    with sqlite() as connection:
        connection.execute("UPDATE jobs SET success = 1 WHERE status = 'failed'")

    ran = run("undo", operation)

    assert len(ran.err.splitlines()) == 11
    assert ran.err.splitlines()[-1].startswith("unstick: 4 more could not be undone; unstick_job_recoveries has")


# The calls


@pytest.fixture
def system() -> MemoryJobs:
    made = MemoryJobs()
    for number in (1, 2):
        began = made.now - timedelta(hours=number)
        made.put(StoredJob(job=Job(id=number, state=JobState.RUNNING, status="running", started_at=began)))
    return made


def watched(system: MemoryJobs) -> Watched:
    return Watched(source=MemorySource(system, "main"), ledger=MemoryLedger(system), policy=Policy())


def service(system: MemoryJobs) -> FastAPI:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Watched]:
        yield watched(system)

    return create_app(watched={"main": opened}, principal=bearer_principal(SECRET, AUTH))


async def swept_in(system: MemoryJobs) -> str:
    return str((await sweep(watched(system), SweepOrder(actor="test"))).operation_id)


def operation_url(operation_id: str) -> str:
    return UNDO_OPERATION.format(operation_id=operation_id)


async def test_an_operator_undoes_an_operation_and_the_audit_log_says_who_and_why(system: MemoryJobs) -> None:
    before = dict(system.jobs)
    operation = await swept_in(system)
    async with client(service(system), Role.OPERATOR) as caller:
        dry = (await caller.post(operation_url(operation) + "?dry_run=true")).json()
        answer = await caller.post(operation_url(operation) + "?reason=only%20slow")

    shape = answer.json()
    assert answer.status_code == 200
    assert shape.keys() == UndoShape.__annotations__.keys() - {"would_undo"}
    assert dry["would_undo"] == shape["undone_jobs"] == {"queued": 0, "running": 2, "total": 2}
    assert (shape["undoes"], shape["failures"]) == (int(operation), [])
    assert system.jobs == before
    entries = [entry for entry, _ in system.audit if entry.call == "jobs.undo"]
    assert [entry.outcome.value for entry in entries] == ["done", "started", "done"]
    assert {(entry.actor, entry.role) for entry in entries} == {("ada", "operator")}
    assert entries[0].parameters == {"operation_id": operation, "dry_run": "true"}
    assert entries[1].parameters == {"source": "main", "operation": int(operation), "reason": "only slow"}


async def test_a_jobs_last_recovery_is_undone_by_its_address(system: MemoryJobs) -> None:
    await swept_in(system)
    # Ids are text in an address; this source's are numbers.
    system.recoveries[:] = [record for record in system.recoveries if record.job_id == 1]
    async with client(service(system), Role.OPERATOR) as caller:
        url = UNDO_JOB.format(source="main", job_id="1")
        undone, again = await caller.post(url), await caller.post(url)
        unknown = await caller.post(UNDO_JOB.format(source="main", job_id="77"))
        elsewhere = await caller.post(UNDO_JOB.format(source="nowhere", job_id="1"))
    assert undone.json()["undone_jobs"]["total"] == 1
    assert system.jobs[1].job.state is JobState.RUNNING
    assert "was undone" in assert_problem(again, 409)["detail"]
    assert "job 77" in assert_problem(unknown, 404)["detail"]
    assert "no such source" in assert_problem(elsewhere, 404)["detail"]


async def test_what_cannot_be_undone_is_told_apart(system: MemoryJobs) -> None:
    operation = await swept_in(system)
    async with client(service(system), Role.OPERATOR) as caller:
        first = (await caller.post(operation_url(operation))).json()["operation_id"]
        assert_problem(await caller.post(operation_url(operation)), 409)
        assert_problem(await caller.post(operation_url("999")), 404)
        assert_problem(await caller.post(operation_url(str(first))), 422)
        for wrong in ("0", "-1", "soon", "9" * 30):
            assert_problem(await caller.post(operation_url(wrong)), 422)
        assert_problem(await caller.post(operation_url(operation), json={"dry_run": True}), 422)
        assert_problem(await caller.post(operation_url(operation) + "?dry_run=true&dry_run=false"), 422)
        assert_problem(await caller.post(operation_url(operation) + "?force=true"), 422)
    refused = [entry for entry, _ in system.audit if entry.call == "jobs.undo" and entry.outcome.value == "refused"]
    assert len(refused) == 10


@pytest.mark.parametrize(("role", "status"), [(None, 401), (Role.VIEWER, 403)])
@pytest.mark.parametrize("url", [operation_url("1"), UNDO_JOB.format(source="main", job_id="1")])
async def test_whoever_may_not_clean_may_not_undo(system: MemoryJobs, role: Role | None, status: int, url: str) -> None:
    await swept_in(system)
    left = dict(system.jobs)
    async with client(service(system), role) as caller:
        assert_problem(await caller.post(url), status)
    assert system.jobs == left


# In a host's app, on its sessions


async def test_in_a_hosts_app_a_cleanup_is_undone_on_the_hosts_own_sessions(database: Database) -> None:
    bench = await open_bench(database)
    await bench.put({}, {"status": "queued"}, {"error_message": "before"})
    before = await bench.rows()
    engine = create_async_engine(bench.engine.url)
    sessions = async_sessionmaker(engine, class_=AsyncSession)

    async def everybody() -> Principal:
        return Principal(name="ada", role=Role.ADMIN)

    app = FastAPI()
    app.include_router(admin_router(sessions, auth=everybody, jobs=bench.jobs, policy=Policy()))
    transport: Any = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://unstick.test") as caller:
        cleaned = (await caller.post("/api/v1/admin/jobs/cleanup")).json()
        of_job = await caller.post(UNDO_JOB.format(source="main", job_id="2"))
        of_all = await caller.post(operation_url(str(cleaned["operation_id"])))
    await engine.dispose()
    after = await bench.rows()
    await bench.close()

    assert cleaned["cleaned_jobs"]["total"] == 3
    assert of_job.json()["undone_jobs"] == {"queued": 1, "running": 0, "total": 1}
    assert of_all.json()["undone_jobs"] == {"queued": 0, "running": 2, "total": 2}
    assert of_all.json()["already_undone"] == 1
    assert after == before

"""What the console can list, filter, plan and export, the API can, too."""

from __future__ import annotations

import csv
import io
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.api_support import AUDIT, AUTH, EXPORT, LIST, OVERVIEW, PLANS, SECRET, World, assert_problem, client, service
from tests.jobs import COLUMNS, declared, jobs_table, open_bench
from tests.test_listing import RULES, fill, kept
from unstick.api.auth import bearer_principal
from unstick.api.factory import create_app
from unstick.domain.access import Role
from unstick.domain.audit import AuditOutcome
from unstick.domain.errors import SourceUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tests.jobs import SqlBench
    from tests.servers import Database
    from unstick.pipeline.watched import Watched

DATABASES = ("postgres18",)
"""On all of them the same functions of the pipeline are tested; this one refuses to be asked for a NUL."""


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    table = jobs_table(sa.Column("queue", sa.String(50)), sa.Column("worker", sa.String(50)))
    jobs = declared(table, columns=COLUMNS | {"queue": "queue", "worker": "worker"})
    bench = await open_bench(database, table, jobs)
    await fill(bench)
    yield bench
    await bench.close()


@pytest.fixture
async def http(bench: SqlBench) -> AsyncIterator[httpx.AsyncClient]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Watched]:
        yield kept(bench, RULES)

    async with client(
        create_app(watched={"main": opened}, principal=bearer_principal(SECRET, AUTH)), Role.OPERATOR
    ) as http:
        yield http


async def read(http: httpx.AsyncClient, path: str, **asked: str | int) -> Any:  # noqa: ANN401
    answer = await http.get(path, params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def listed(http: httpx.AsyncClient, **asked: str | int) -> list[int]:
    """Return the ids of all pages of four."""
    page = await read(http, LIST, limit=4, **asked)
    ids = [each["id"] for each in page["jobs"]]
    while page["next_cursor"] is not None:
        page = await read(http, LIST, limit=4, cursor=page["next_cursor"], **asked)
        ids += [each["id"] for each in page["jobs"]]
    return ids


async def test_stuck_jobs_are_listed_by_every_filter_in_either_order_and_planned_by_the_same(
    bench: SqlBench, http: httpx.AsyncClient
) -> None:
    assert await listed(http) == list(range(10, 0, -1))
    assert await listed(http, sort="newest") == list(range(1, 11))
    assert await listed(http, kind="thesis.*", sort="newest") == [2, 4, 6, 8, 10]
    assert await listed(http, queue="q0", reason="silent") == [9, 5, 3]
    assert await listed(http, older_than_minutes=67) == [10, 9, 8]
    assert await listed(http, text="W-7") == [8]
    page = await read(http, LIST, limit=1, kind="essay")
    assert (page["total"], page["total_exact"], page["looked_through"]) == (5, True, 10)
    assert page["jobs"][0]["reason"] == "silent"
    assert {"kind": "thesis.plan", "queue": "q1"} in page["classes"]

    asked: dict[str, str | int] = {"kind": "thesis.*", "older_than_minutes": 65, "action": "mark_failed"}
    planned = (await http.post(PLANS, params=asked)).json()
    assert (planned["dry_run"], planned["would_clean"]["total"]) == (True, 3)
    assert {row["status"] for row in await bench.rows()} == {"queued", "running"}
    await http.post(f"{PLANS}/{planned['plan']['id']}/apply")
    assert [row["id"] for row in await bench.rows() if row["status"] == "failed"] == [6, 8, 10]


async def test_the_audit_log_and_the_last_day_are_told_by_the_hour_and_exported_whole(http: httpx.AsyncClient) -> None:
    await http.post("/api/v1/admin/jobs/cleanup")
    await http.post("/api/v1/admin/jobs/main/nobody/recover", params={"reason": "=1+1"})
    page = await read(http, AUDIT, limit=2)
    older = await read(http, AUDIT, before=page["next_before"])
    entries = page["entries"] + older["entries"]
    told = [(each["call"], each["outcome"]) for each in entries]
    assert told == [("jobs.recover", "refused"), ("jobs.cleanup", "done"), ("jobs.cleanup", "started")]
    assert entries[1]["operation_id"] == entries[2]["id"]
    assert entries[1]["result"]["applied"] == 10
    everything = await read(http, AUDIT, all="true", limit=1)
    assert everything["entries"][0]["call"] == "audit"
    assert [each["id"] for each in (await read(http, AUDIT, job="nobody"))["entries"]] == [entries[0]["id"]]
    assert (await read(http, AUDIT, outcome="failed"))["entries"] == []
    assert len((await read(http, AUDIT, call="jobs.cleanup", actor="ada"))["entries"]) == 2
    assert_problem(await http.get(AUDIT, params={"actor": "a\0"}), 422)

    lines = (await http.get(EXPORT, params={"format": "json"})).text.splitlines()
    assert [json.loads(line) for line in lines] == entries
    exported = await http.get(EXPORT, params={"format": "csv", "outcome": "refused"})
    [row] = csv.DictReader(io.StringIO(exported.text))
    assert (row["call"], row["job_id"], json.loads(row["parameters"])["reason"]) == ("jobs.recover", "nobody", "=1+1")
    assert exported.headers["content-disposition"] == 'attachment; filename="unstick-audit-main.csv"'

    [source] = (await read(http, OVERVIEW))["sources"]
    series = source["overview"]["series"]
    nothing = {"mark_failed": 0, "retry": 0}
    assert [each["recovered"] for each in series] == [*([nothing] * 23), {"mark_failed": 5, "retry": 5}]
    assert (source["overview"]["stuck_jobs"], source["concerns"]) == (0, [])


async def test_the_overview_says_of_each_source_what_is_wrong_with_it_also_where_one_is_away() -> None:
    away = World()
    away.source.failure = SourceUnavailableError("postgresql://ann:hunter2@db")
    async with client(service(World(), other=away), Role.VIEWER) as http:
        main, other = (await read(http, OVERVIEW))["sources"]
        assert (await read(http, OVERVIEW, source="main"))["sources"] == [main]
        assert_problem(await http.get(OVERVIEW, params={"source": "third"}), 404)
    assert [(each["matter"], each["reason"], each["jobs"]) for each in main["concerns"]] == [
        ("stuck", "silent", 1),
        ("stuck", "never_claimed", 2),
    ]
    assert {"queue": None, "state": "running", "jobs": 2} in main["overview"]["open_jobs"]
    assert other["overview"] is None
    assert other["concerns"][0]["matter"] == "away"
    assert "hunter2" not in json.dumps(other)


async def test_a_viewer_lists_and_exports_and_plans_nothing() -> None:
    world = World()
    async with client(service(world), Role.VIEWER) as http:
        assert len((await read(http, LIST))["jobs"]) == 3
        assert (await http.get(EXPORT, params={"format": "csv"})).status_code == 200
        assert_problem(await http.post(PLANS), 403)
        for path, asked in ((LIST, "reason=poison"), (LIST, "older_than_minutes=0"), (LIST, "sort=age"), (EXPORT, "")):
            assert_problem(await http.get(f"{path}?{asked}"), 422)
    assert [each.call for each in world.ledger.rows if each.outcome is AuditOutcome.DONE] == [
        "jobs.stuck",
        "audit.export",
    ]

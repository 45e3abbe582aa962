"""The calls about one job: who may, what they take, what they answer, and what is on record of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest

from tests.api_support import (
    AUTH,
    CALLS_ON_ONE,
    JOB,
    SECRET,
    SNOOZES,
    STUCK,
    World,
    assert_problem,
    bearer,
    client,
    service,
    token,
)
from tests.jobs import open_bench
from tests.one_job import whole
from tests.servers import Database
from unstick.api.auth import bearer_principal
from unstick.api.factory import create_app
from unstick.domain.access import Role
from unstick.domain.audit import AuditOutcome
from unstick.domain.job import JobState
from unstick.pipeline.watched import Watched
from unstick.testing.conformance import MINUTE, Ages

QUERIES = {"jobs.snooze": "?minutes=60&reason=later"}
CHANGES = ["jobs.recover", "jobs.snooze", "jobs.unsnooze"]
RECOVER, SNOOZE = f"{JOB}/recover", f"{JOB}/snooze"
HEALTHY = "/api/v1/admin/jobs/main/3"


def asked(call: str) -> tuple[str, str]:
    method, path = CALLS_ON_ONE[call]
    return method, path + QUERIES.get(call, "")


@pytest.mark.parametrize("call", CALLS_ON_ONE)
async def test_each_call_wants_its_role_and_whoever_lacks_it_changes_nothing(call: str) -> None:
    world = World()
    before, (method, path) = world.states(), asked(call)
    async with client(service(world)) as caller:
        assert_problem(await caller.request(method, path), 401)
        refused = await caller.request(method, path, headers=bearer(token(Role.VIEWER)))
        if call in CHANGES:
            needed = Role.OPERATOR if call == "jobs.recover" else Role.ADMIN
            assert_problem(refused, 403)
            assert world.states() == before
            assert (await caller.get(SNOOZES, headers=bearer(token(Role.VIEWER)))).json()["snoozes"] == []
            assert (await caller.request(method, path, headers=bearer(token(needed)))).status_code == 200
        else:
            assert refused.status_code == 200


async def test_a_job_is_recovered_and_no_other() -> None:
    world = World()
    async with client(service(world), Role.OPERATOR) as caller:
        said = (await caller.post(f"{RECOVER}?action=mark_failed&reason=gone")).json()
    assert said == {
        "source": "main",
        "job_id": 2,
        "recovered": True,
        "action": "mark_failed",
        "outcome": "applied",
        "reason": "silent",
        "detail": "its last sign of life was at 2026-11-23 20:15:00 UTC",
        "operation_id": 1,
        "at": "2026-11-23T21:00:00+00:00",
        "message": "Job 2 is marked failed: its last sign of life was at 2026-11-23 20:15:00 UTC.",
    }
    assert world.states() == {
        1: JobState.QUEUED,
        2: JobState.FAILED,
        3: JobState.RUNNING,
        4: JobState.QUEUED,
    }


async def test_a_recovery_is_recorded_once_as_begun_and_once_as_ended_with_its_reason() -> None:
    world = World()
    async with client(service(world), Role.OPERATOR) as caller:
        await caller.post(f"{RECOVER}?action=retry&reason=gone")
    begun, ended = world.ledger.rows
    assert (begun.outcome, ended.outcome) == (AuditOutcome.STARTED, AuditOutcome.DONE)
    for row in (begun, ended):
        assert (row.actor, row.role, row.call, row.source, row.job_id) == ("ada", "operator", "jobs.recover", "main", 2)
        assert row.parameters == {"source": "main", "job_id": "2", "action": "retry", "reason": "gone"}


async def test_a_job_that_isnt_stuck_is_409_says_why_and_is_recorded() -> None:
    world = World()
    before = world.states()
    async with client(service(world), Role.OPERATOR) as caller:
        problem = assert_problem(await caller.post(f"{HEALTHY}/recover?reason=slow"), 409)
    (row,) = world.ledger.rows
    assert problem["detail"] == "Job 3 is running and was started 1 minute ago; it isn't stuck."
    assert world.states() == before
    assert (row.outcome, row.call, row.job_id) == (AuditOutcome.REFUSED, "jobs.recover", "3")
    assert row.parameters == {"source": "main", "job_id": "3", "reason": "slow"}
    assert row.result == {"status": 409, "problem": problem["detail"]}


async def test_who_wasnt_let_in_writes_no_jobs_story() -> None:
    """The call is in the audit log, but not under the job: or anybody could bury what happened to it."""
    world = World()
    async with client(service(world)) as caller:
        await caller.post(RECOVER)
        await caller.post(RECOVER, headers=bearer(token(Role.VIEWER)))
        await caller.post(f"{RECOVER}?action=x", headers=bearer(token(Role.OPERATOR)))
    assert [(row.result["status"], row.job_id) for row in world.ledger.rows] == [(401, None), (403, None), (422, "2")]


@pytest.mark.parametrize("call", [call for call in CALLS_ON_ONE if call != "snoozes"])
async def test_an_unknown_job_or_source_is_404(call: str) -> None:
    world = World()
    method, path = asked(call)
    async with client(service(world), Role.ADMIN) as caller:
        for job_id in ("99", "two", quote("2 or 1=1"), "02", "\N{FULLWIDTH DIGIT TWO}"):
            problem = assert_problem(await caller.request(method, path.replace("/main/2", f"/main/{job_id}")), 404)
            assert "has no job" in problem["detail"]
        problem = assert_problem(await caller.request(method, path.replace("/main/2", "/nowhere/2")), 404)
    assert "main" in problem["detail"]
    assert world.states() == World().states()


BAD = [
    ("jobs.recover", "?action=leave"),
    ("jobs.recover", "?action="),
    ("jobs.recover", "?action=retry&action=retry"),
    ("jobs.recover", "?threshold_minutes=5"),
    ("jobs.recover", "?source=main"),
    ("jobs.recover", "?reason=" + "x" * 501),
    ("jobs.snooze", ""),
    ("jobs.snooze", "?minutes=60"),
    ("jobs.snooze", "?minutes=60&reason="),
    ("jobs.snooze", "?minutes=60&reason=%20%0A"),
    ("jobs.snooze", "?reason=later"),
    *(("jobs.snooze", f"?reason=later&minutes={minutes}") for minutes in ("0", "-1", "525601", "1.5", "2h", "", "1e2")),
    ("jobs.unsnooze", "?minutes=5"),
    ("jobs.unsnooze", "?reason=" + "x" * 501),
    ("jobs.story", "?limit=5"),
    ("jobs.story", "%00"),
    ("jobs.recover", "?reason=a%00b"),
    ("snoozes", "?job_id=2"),
]


@pytest.mark.parametrize(("call", "query"), BAD, ids=[f"{call}{query[:30]}" for call, query in BAD])
async def test_what_means_nothing_is_422_and_changes_nothing(call: str, query: str) -> None:
    world = World()
    method, path = CALLS_ON_ONE[call]
    async with client(service(world), Role.ADMIN) as caller:
        assert_problem(await caller.request(method, path + query), 422)
        assert (await caller.get(SNOOZES)).json()["snoozes"] == []
    assert world.states() == World().states()


@pytest.mark.parametrize("call", CHANGES)
async def test_what_is_sent_in_a_body_would_be_overlooked_so_it_is_422(call: str) -> None:
    world = World()
    method, path = asked(call)
    async with client(service(world), Role.ADMIN) as caller:
        assert_problem(await caller.request(method, path, json={"reason": "later"}), 422)
    assert world.states() == World().states()


async def test_a_snoozed_job_leaves_the_report_and_comes_back() -> None:
    world = World()
    async with client(service(world), Role.ADMIN) as caller:
        made = (await caller.post(f"{SNOOZE}?minutes=90&reason=the customer is asked")).json()
        during, listed = (await caller.get(STUCK)).json(), (await caller.get(SNOOZES)).json()
        ended = (await caller.delete(f"{SNOOZE}?reason=they answered")).json()
        after, again = (await caller.get(STUCK)).json(), (await caller.delete(SNOOZE)).json()
    snooze = {
        "source": "main",
        "job_id": 2,
        "until": "2026-11-23T22:30:00+00:00",
        "reason": "the customer is asked",
        "by": "ada",
        "at": "2026-11-23T21:00:00+00:00",
    }
    assert (made["snoozed"], made["snooze"], ended["snoozed"], ended["snooze"]) == (True, snooze, False, snooze)
    assert made["message"] == "Job 2 is left alone until 2026-11-23 22:30:00+00:00."
    assert listed == {"snoozes": [snooze], "read_at": "2026-11-23T21:00:00+00:00"}
    assert (during["running_jobs"], during["snoozed"], during["stuck_jobs"]["running_stuck"]) == ([], 1, 0)
    assert ([job["id"] for job in after["running_jobs"]], after["snoozed"]) == ([2], 0)
    assert (again["snooze"], again["message"]) == (None, "Job 2 wasn't snoozed.")


async def test_a_snooze_is_recorded_once_with_its_reason() -> None:
    world = World()
    async with client(service(world), Role.ADMIN) as caller:
        await caller.post(f"{SNOOZE}?minutes=90&reason=later")
        await caller.delete(f"{SNOOZE}?reason=now")
    first, second = world.ledger.rows
    assert (first.call, first.outcome, first.actor, first.job_id) == ("jobs.snooze", AuditOutcome.DONE, "ada", 2)
    assert (first.parameters["reason"], first.parameters["seconds"]) == ("later", 5400.0)
    assert (second.call, second.parameters["reason"]) == ("jobs.unsnooze", "now")


async def test_an_address_tells_every_method_it_takes() -> None:
    world = World()
    async with client(service(world), Role.ADMIN) as caller:
        answer = await caller.put(SNOOZE)
        other = await caller.get(RECOVER)
    assert_problem(answer, 405)
    assert answer.headers["allow"] == "DELETE, POST"
    assert other.headers["allow"] == "POST"


async def test_a_story_is_answered_with_its_verdict_first() -> None:
    async with client(service(World()), Role.VIEWER) as caller:
        said = (await caller.get(JOB)).json()
    assert said["diagnosis"] == {
        "standing": "stuck",
        "stuck": True,
        "reason": "silent",
        "sentence": "Job 2 is stuck in running for 45 minutes, where 30 minutes may pass: its last sign of life was at "
        "2026-11-23 20:15:00 UTC.",
        "evidence": [
            {"witness": "row.started_at", "holding": "unknown", "at": "2026-11-23T20:15:00+00:00", "value": None}
        ],
        "sweep": "A sweep would mark it failed.",
        "policy": {
            "rule": None,
            "matches": {},
            "action": "mark_failed",
            "queued_after_seconds": 300.0,
            "running_after_seconds": 1800.0,
            "max_recoveries": 3,
            "recovery_window_seconds": 259200.0,
            "ask": False,
        },
        "snooze": None,
    }
    assert (said["source"], said["id"], said["told_at"]) == ("main", 2, "2026-11-23T21:00:00+00:00")
    assert [(event["at"], event["kind"]) for event in said["events"]] == [("2026-11-23T20:15:00+00:00", "started")]
    assert (said["job"]["state"], said["truncated"]) == ("running", False)


async def test_what_was_refused_is_part_of_the_story_and_what_was_only_read_is_not(database: Database) -> None:
    """On a real ledger: the refusal of an operator, but neither the reads nor what a viewer tried."""
    bench = await open_bench(database)
    job_id = await bench.add(JobState.RUNNING, Ages(enqueued=20 * MINUTE, started=10 * MINUTE))
    other = await bench.add(JobState.RUNNING, Ages(enqueued=90 * MINUTE, started=60 * MINUTE))
    watched = whole(bench)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Watched]:
        yield watched

    app = create_app(watched={"main": opened}, principal=bearer_principal(SECRET, AUTH))
    path = f"/api/v1/admin/jobs/main/{job_id}"
    async with client(app, Role.OPERATOR) as caller:
        assert_problem(await caller.post(f"{path}/recover", headers=bearer(token(Role.VIEWER, "eve"))), 403)
        await caller.get(path)
        assert_problem(await caller.post(f"{path}/recover?reason=slow"), 409)
        assert (await caller.post(f"/api/v1/admin/jobs/main/{other}/recover?action=retry")).json()["recovered"]
        said = (await caller.get(path)).json()
    await bench.close()
    why = "Job 1 is running and was started 10 minutes ago; it isn't stuck."
    assert [(event["kind"], event["sentence"]) for event in said["events"]] == [
        ("enqueued", "It was enqueued."),
        ("started", "It was started."),
        (
            "refused",
            f"ada asked to recover it, which was refused: {why}",
        ),
    ]
    assert said["events"][-1]["data"]["why"] == "slow"

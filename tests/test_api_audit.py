"""Every call is in the audit log before it is answered: who, what, with which parameters, what came of it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from fastapi import FastAPI

from tests.api_support import (
    AUTH,
    CALLS,
    CLEANUP,
    SECRET,
    STATS,
    STUCK,
    MemoryLedger,
    World,
    assert_problem,
    bearer,
    client,
    host,
    service,
    token,
)
from unstick.api.auth import bearer_principal
from unstick.domain.access import Role
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import LedgerMissingError, SourceUnavailableError

READS = ["jobs.stuck", "stats"]


def one_row(world: World) -> AuditEntry:
    assert len(world.ledger.rows) == 1
    return world.ledger.rows[0]


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_by_nobody_known_is_recorded_with_its_address(call: str) -> None:
    world = World()
    method, path = CALLS[call]
    async with client(service(world)) as caller:
        await caller.request(method, f"{path}?threshold_minutes=7")
    row = one_row(world)
    assert (row.actor, row.role, row.call, row.outcome) == ("anonymous", None, call, AuditOutcome.REFUSED)
    assert row.parameters == {"threshold_minutes": "7", "client_address": "127.0.0.1"}
    assert row.result["status"] == 401


async def test_a_forged_address_doesnt_displace_the_real_one() -> None:
    world = World()
    async with client(service(world)) as caller:
        await caller.get(f"{STUCK}?client_address=10.9.9.9")
    assert one_row(world).parameters == {"client_address": "127.0.0.1"}


async def test_a_call_above_the_callers_role_is_recorded_with_their_name() -> None:
    world = World()
    async with client(service(world), Role.VIEWER) as caller:
        await caller.post(f"{CLEANUP}?action=retry")
    row = one_row(world)
    assert (row.actor, row.role, row.call, row.outcome) == ("ada", "viewer", "jobs.cleanup", AuditOutcome.REFUSED)
    assert row.parameters == {"action": "retry"}
    assert row.result["status"] == 403


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_with_parameters_that_mean_nothing_is_recorded_as_sent(call: str) -> None:
    world = World()
    method, path = CALLS[call]
    async with client(service(world), Role.ADMIN) as caller:
        await caller.request(method, f"{path}?nonsense=a&nonsense=b&source=main")
    row = one_row(world)
    assert (row.outcome, row.result["status"]) == (AuditOutcome.REFUSED, 422)
    assert row.parameters == {"nonsense": ["a", "b"], "source": "main"}


@pytest.mark.parametrize("call", READS)
async def test_a_read_is_recorded(call: str) -> None:
    world = World()
    method, path = CALLS[call]
    async with client(service(world), Role.VIEWER) as caller:
        await caller.request(method, path)
    row = one_row(world)
    assert (row.actor, row.role, row.call, row.outcome) == ("ada", "viewer", call, AuditOutcome.DONE)
    assert row.result == {"status": 200}


@pytest.mark.parametrize("call", READS)
async def test_identical_reads_of_one_caller_are_offered_one_row(call: str) -> None:
    world = World()
    method, path = CALLS[call]
    async with client(service(world)) as caller:
        for headers in (bearer(token(Role.VIEWER)), bearer(token(Role.VIEWER, "grace")), {}):
            for _ in range(3):
                await caller.request(method, path, headers=headers)
    assert [(entry.actor, count) for entry, count in world.ledger.reads.values()] == [
        ("ada", 3),
        ("grace", 3),
        ("anonymous", 3),
    ]
    assert world.ledger.entries == []


@pytest.mark.parametrize(
    ("query", "role"),
    [("", None), ("", Role.VIEWER), ("", Role.ADMIN), ("?action=x", Role.ADMIN), ("?dry_run=true", Role.ADMIN)],
)
async def test_two_identical_cleanups_never_share_a_row(query: str, role: Role | None) -> None:
    world = World()
    async with client(service(world), role) as caller:
        await caller.post(CLEANUP + query)
        once = len(world.ledger.entries)
        await caller.post(CLEANUP + query)
    assert once > 0
    assert len(world.ledger.entries) == 2 * once
    assert world.ledger.reads == {}


async def test_a_cleanup_is_recorded_once_as_begun_and_once_as_ended() -> None:
    world = World()
    async with client(service(world), Role.OPERATOR) as caller:
        said = (await caller.post(CLEANUP)).json()
    begun, ended = world.ledger.rows
    assert (begun.outcome, ended.outcome) == (AuditOutcome.STARTED, AuditOutcome.DONE)
    assert (begun.actor, begun.role) == (ended.actor, ended.role) == ("ada", "operator")
    assert said["operation_id"] == ended.operation_id == 1


async def test_a_dry_run_is_recorded_with_what_it_foresaw() -> None:
    world = World()
    async with client(service(world), Role.OPERATOR) as caller:
        await caller.post(f"{CLEANUP}?dry_run=true")
    row = one_row(world)
    assert (row.outcome, row.call, row.parameters) == (AuditOutcome.DONE, "jobs.cleanup", {"dry_run": "true"})
    assert row.result == {"status": 200, "would_clean": {"queued": 2, "running": 1, "total": 3}}


async def test_a_cleanup_that_failed_before_it_began_is_recorded_by_the_call() -> None:
    world = World()
    world.source.failure = SourceUnavailableError("The database of source 'main' does not answer.")
    async with client(service(world), Role.OPERATOR) as caller:
        assert_problem(await caller.post(CLEANUP), 503)
    row = one_row(world)
    assert (row.outcome, row.result["status"]) == (AuditOutcome.FAILED, 503)


async def test_a_cleanup_that_failed_on_its_way_is_recorded_by_the_sweep_alone() -> None:
    world = World()
    world.source.failure, world.source.fail_at = SourceUnavailableError("gone"), 1
    async with client(service(world), Role.OPERATOR) as caller:
        await caller.post(CLEANUP)
    assert [row.outcome for row in world.ledger.rows] == [AuditOutcome.STARTED, AuditOutcome.FAILED]


async def test_a_call_on_a_named_source_is_recorded_in_that_sources_ledger() -> None:
    main, other = World(), World()
    async with client(service(main, other=other), Role.VIEWER) as caller:
        await caller.get(f"{STATS}?source=other")
    assert main.ledger.rows == []
    assert one_row(other).parameters == {"source": "other"}


@pytest.mark.parametrize("query", ["source=nowhere", "source=other&source=other"])
async def test_a_call_that_names_its_source_badly_is_recorded_in_the_main_ledger(query: str) -> None:
    main, other = World(), World()
    async with client(service(main, other=other), Role.VIEWER) as caller:
        await caller.get(f"{STATS}?{query}")
    assert one_row(main).outcome is AuditOutcome.REFUSED
    assert other.ledger.rows == []


async def test_what_a_caller_sends_is_recorded_bounded_and_clean() -> None:
    world = World()
    sent: dict[str, Any] = {f"key{n}": "x" * 1000 for n in range(50)} | {"k" * 1000: "y"}
    async with client(service(world)) as caller:
        await caller.get(STUCK, params={"nul": "a\0b", **sent})
    parameters = one_row(world).parameters
    assert len(parameters) == 21
    assert parameters["nul"] == "a\N{REPLACEMENT CHARACTER}b"
    assert all(len(str(word)) <= 200 for pair in parameters.items() for word in pair)


async def test_a_subject_no_database_can_keep_is_cleaned_in_the_record() -> None:
    world = World()
    async with client(service(world)) as caller:
        await caller.post(CLEANUP, headers=bearer(token(Role.ADMIN, "a\0" + "b" * 500)))
    assert {row.actor for row in world.ledger.rows} == {"a\N{REPLACEMENT CHARACTER}" + "b" * 198}


@pytest.mark.parametrize(
    "app", [service, lambda world: host(world, bearer_principal(SECRET, AUTH))], ids=["service", "host"]
)
@pytest.mark.parametrize(("call", "method"), [("jobs.stuck", "DELETE"), ("jobs.cleanup", "GET"), ("stats", "BREW")])
async def test_a_method_that_a_call_does_not_take_is_recorded_and_does_nothing(
    app: Callable[[World], FastAPI], call: str, method: str
) -> None:
    world = World()
    before = world.states()
    right, path = CALLS[call]
    async with client(app(world), Role.ADMIN) as caller:
        answer = await caller.request(method, f"{path}?threshold_minutes=7")
    problem = assert_problem(answer, 405)
    row = one_row(world)
    assert (row.call, row.outcome, row.result) == (
        call,
        AuditOutcome.REFUSED,
        {"status": 405, "problem": f"This address takes {right}, not {method}."},
    )
    assert row.parameters == {"threshold_minutes": "7", "client_address": "127.0.0.1"}
    assert (problem["detail"], answer.headers["allow"]) == (row.result["problem"], right)
    assert answer.headers["cache-control"] == "no-store"
    assert world.states() == before


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/api/v1/admin", "/api/v1/admin/jobs", "/favicon.ico"])
async def test_a_call_that_is_none_of_ours_is_not_recorded(path: str) -> None:
    world = World()
    async with client(service(world), Role.ADMIN) as caller:
        await caller.get(path)
    assert world.ledger.rows == []


@pytest.mark.parametrize("query", ["", "?dry_run=true", "?action=x"])
@pytest.mark.parametrize("call", CALLS)
async def test_what_cant_be_recorded_is_not_answered_and_not_done(call: str, query: str) -> None:
    world = World(ledger=MemoryLedger(failure=LedgerMissingError("Run `unstick db upgrade` first.")))
    before = world.states()
    method, path = CALLS[call]
    async with client(service(world), Role.ADMIN) as caller:
        problem = assert_problem(await caller.request(method, path + query), 503)
    assert set(problem) == {"type", "title", "status", "detail"}
    assert world.states() == before


async def test_only_who_was_let_in_hears_why_it_cant_be_recorded() -> None:
    world = World(ledger=MemoryLedger(failure=LedgerMissingError("Run `unstick db upgrade` first.")))
    async with client(service(world)) as caller:
        nobody = assert_problem(await caller.get(STUCK), 401)
        known = assert_problem(await caller.get(STUCK, headers=bearer(token(Role.VIEWER))), 503)
        low = assert_problem(await caller.post(CLEANUP, headers=bearer(token(Role.VIEWER))), 403)
    assert "unstick db upgrade" in known["detail"]
    assert "upgrade" not in nobody["detail"] + low["detail"]


@pytest.mark.parametrize(("call", "rows"), [("jobs.stuck", 1), ("jobs.cleanup", 0)])
async def test_a_call_that_is_cut_off_is_recorded_where_the_sweep_doesnt(call: str, rows: int) -> None:
    world = World()
    arrived = asyncio.Event()

    async def clock() -> Any:  # noqa: ANN401
        arrived.set()
        await asyncio.sleep(60)

    world.source.clock = clock  # type: ignore[method-assign]
    async with client(service(world), Role.ADMIN) as caller:
        cut_off = asyncio.create_task(caller.request(*CALLS[call]))
        await arrived.wait()
        cut_off.cancel()
        with suppress(asyncio.CancelledError):
            await cut_off
    assert [row.outcome for row in world.ledger.rows] == [AuditOutcome.FAILED] * rows


async def test_a_call_that_is_cut_off_twice_is_still_recorded() -> None:
    world = World()
    arrived, recording = asyncio.Event(), asyncio.Event()
    count_read = world.ledger.count_read

    async def clock() -> Any:  # noqa: ANN401
        arrived.set()
        await asyncio.sleep(60)

    async def slow_count_read(entry: AuditEntry, times: int = 1) -> None:
        recording.set()
        await asyncio.sleep(0.02)
        await count_read(entry, times)

    world.source.clock = clock  # type: ignore[method-assign]
    world.ledger.count_read = slow_count_read  # type: ignore[method-assign]
    async with client(service(world), Role.ADMIN) as caller:
        cut_off = asyncio.create_task(caller.get(STUCK))
        for reached in (arrived, recording):
            await reached.wait()
            cut_off.cancel()
        with suppress(asyncio.CancelledError):
            await cut_off
        await asyncio.sleep(0.1)
    assert one_row(world).outcome is AuditOutcome.FAILED

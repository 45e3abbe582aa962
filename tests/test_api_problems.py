"""Every error is an RFC 9457 problem that says what happened, and tells nothing of our insides."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.api_support import (
    AUTH,
    CALLS,
    CLEANUP,
    SECRET,
    STUCK,
    MemoryLedger,
    World,
    assert_problem,
    client,
    opened_by_failing,
    service,
)
from unstick.api.auth import bearer_principal
from unstick.api.factory import create_app
from unstick.api.problems import problem_of
from unstick.api.router import admin_router
from unstick.domain.access import Role
from unstick.domain.errors import (
    ConfigurationError,
    InvalidRequestError,
    LedgerMissingError,
    PendingChangesError,
    RecoveryStoppedError,
    SourceUnavailableError,
    UnstickError,
)
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.pipeline.watched import OpenWatched, Watched
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.mapping import JobTable
from unstick.wiring import watch

ASKING = [call for call in CALLS if call not in {"late_finishes", "replay", "overview", "audit"}]
"""The calls that fail with their source; the others answer from what is on record, or tell that it is away."""
KNOWN = [
    (SourceUnavailableError("The database of source 'main' does not answer."), 503),
    (ConfigurationError("Column `state` is not in table jobs."), 503),
    (LedgerMissingError("Run `unstick db upgrade`."), 503),
    (PendingChangesError("The session holds changes."), 409),
    (InvalidRequestError("limit must be from 1 to 1000."), 422),
    (UnstickError("Something of ours."), 500),
]


@pytest.mark.parametrize(("error", "status"), KNOWN, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("call", ASKING)
async def test_an_error_of_ours_is_told_in_its_own_sentence(call: str, error: Exception, status: int) -> None:
    world = World()
    world.source.failure = error
    async with client(service(world), Role.ADMIN) as caller:
        problem = assert_problem(await caller.request(*CALLS[call]), status)
    assert str(error) in problem["detail"]


@pytest.mark.parametrize("call", ASKING)
async def test_an_unexpected_error_is_logged_whole_and_told_in_general(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.source.failure = RuntimeError("password=hunter2")
    async with client(service(world), Role.ADMIN) as caller:
        answer = await caller.request(*CALLS[call])
    assert_problem(answer, 500)
    assert "hunter2" not in answer.text
    logged = [record for record in caplog.records if record.name == "unstick" and record.levelno == logging.ERROR]
    assert [str(record.exc_info[1]) for record in logged if record.exc_info] == ["password=hunter2"]


@pytest.mark.parametrize(("cause", "status"), [(SourceUnavailableError("gone"), 503), (UnstickError("odd"), 500)])
async def test_a_stopped_cleanup_tells_how_many_stay_recovered(cause: Exception, status: int) -> None:
    world = World()
    world.source.failure, world.source.fail_at = cause, 1
    async with client(service(world), Role.OPERATOR) as caller:
        problem = assert_problem(await caller.post(CLEANUP), status)
    assert problem["recovered"] == 2
    assert "2 job(s)" in problem["detail"]
    assert list(world.states().values()).count(JobState.FAILED) == 2


async def test_a_cleanup_stopped_by_an_unexpected_error_tells_the_number_and_no_more() -> None:
    world = World()
    world.source.failure, world.source.fail_at = RuntimeError("password=hunter2"), 1
    async with client(service(world), Role.OPERATOR) as caller:
        answer = await caller.post(CLEANUP)
    problem = assert_problem(answer, 500)
    assert problem["recovered"] == 2
    assert "hunter2" not in answer.text


def test_a_stop_without_a_cause_speaks_for_itself() -> None:
    problem = problem_of(RecoveryStoppedError("Stopped.", recovered=0))
    assert (problem.status, problem.detail, problem.members) == (500, "Stopped.", {"recovered": 0})


async def test_a_422_never_echoes_what_was_sent() -> None:
    async with client(service(World()), Role.ADMIN) as caller:
        answer = await caller.get(f"{STUCK}?threshold_minutes=hunter2&limit=hunter2&password=hunter2")
    problem = assert_problem(answer, 422)
    assert "hunter2" not in answer.text
    assert [error["loc"][1] for error in problem["errors"]] == ["threshold_minutes", "limit", "password"]


async def test_a_flood_of_unknown_parameters_is_answered_briefly() -> None:
    async with client(service(World()), Role.ADMIN) as caller:
        for word in ("p{n}", "same"):
            answer = await caller.get(STUCK + "?" + "&".join(word.format(n=n) for n in range(5000)))
            assert_problem(answer, 422)
            assert len(answer.content) < 5000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", STUCK + "/", 404), ("DELETE", STUCK, 405), ("GET", CLEANUP, 405)],
)
async def test_a_wrong_address_or_method_is_a_problem_too(method: str, path: str, status: int) -> None:
    async with client(service(World()), Role.ADMIN) as caller:
        answer = await caller.request(method, path)
    assert_problem(answer, status)
    assert ("allow" in answer.headers) == (status == 405)


async def test_a_source_that_cant_be_opened_is_503_with_its_sentence_for_those_let_in() -> None:
    error = SourceUnavailableError("The database of source 'main' does not answer.")
    app = create_app(watched={"main": opened_by_failing(error)}, principal=bearer_principal(SECRET, AUTH))
    async with client(app, Role.ADMIN) as caller:
        for call in CALLS.values():
            assert str(error) in assert_problem(await caller.request(*call), 503)["detail"]
    async with client(app) as caller:
        for call in CALLS.values():
            assert str(error) not in assert_problem(await caller.request(*call), 401)["detail"]


def nobody_answers() -> OpenWatched:
    """Open a database where no server listens, as in an outage."""
    declared = JobTable(name="jobs", columns={"id": "id", "state": "status", "started_at": "started_at"}, states={})

    @asynccontextmanager
    async def opened() -> AsyncIterator[Watched]:
        engine = open_engine("postgresql://nobody@127.0.0.1:1/none")
        try:
            yield watch("main", declared, EngineConnections(engine), Policy())
        finally:
            await engine.dispose()

    return opened


@pytest.mark.parametrize(
    ("role", "status"), [(None, 401), (Role.VIEWER, 403), (Role.OPERATOR, 503)], ids=["nobody", "viewer", "operator"]
)
async def test_in_an_outage_nobody_is_let_in_who_else_wouldnt_be_and_each_call_is_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture, role: Role | None, status: int
) -> None:
    app = create_app(watched={"main": nobody_answers()}, principal=bearer_principal(SECRET, AUTH))
    async with client(app, role) as caller:
        assert_problem(await caller.post(CLEANUP), status)
    [logged] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "jobs.cleanup" in logged.getMessage()
    assert "doesn't answer" in logged.getMessage()
    assert "\n" not in logged.getMessage()
    assert logged.exc_info is None


async def test_missing_tables_of_ours_are_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World(ledger=MemoryLedger(failure=LedgerMissingError("Run `unstick db upgrade`.")))
    async with client(service(world), Role.VIEWER) as caller:
        assert_problem(await caller.get(STUCK), 503)
    [logged] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert logged.exc_info is None


async def test_a_sweep_stopped_by_an_outage_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.source.failure, world.source.fail_at = SourceUnavailableError("The database doesn't answer."), 1
    async with client(service(world), Role.OPERATOR) as caller:
        assert_problem(await caller.post(CLEANUP), 503)
    [logged] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert logged.exc_info is None


async def test_an_unexpected_error_of_the_ledger_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    world = World(ledger=MemoryLedger(failure=RuntimeError("a bug")))
    async with client(service(world)) as caller:
        assert_problem(await caller.get(STUCK), 401)
    [logged] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert logged.exc_info
    assert str(logged.exc_info[1]) == "a bug"


async def test_every_answer_of_the_service_forbids_what_a_browser_need_not_do() -> None:
    async with client(service(World())) as caller:
        for path in ("/", "/nowhere", STUCK):
            headers = (await caller.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["content-security-policy"].startswith("default-src 'none'")


def test_a_service_without_a_source_is_told_before_it_starts() -> None:
    with pytest.raises(ConfigurationError, match="no source"):
        admin_router(watched={}, principal=bearer_principal(SECRET, AUTH))

"""The router in somebody else's application, with its own login, handlers and prefix."""

from typing import Annotated

import pytest
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from tests.api_support import CALLS, CLEANUP, STUCK, MemoryLedger, World, assert_problem, client, host
from unstick.api.router import admin_router
from unstick.domain.access import Principal, Role
from unstick.domain.audit import AuditOutcome


class HostLoginError(Exception):
    """What some host's login raises, and its app knows to answer."""


async def cookie_login(request: Request) -> Principal:
    if "session" not in request.cookies:
        raise HTTPException(401, "Log in at /login.")
    if request.cookies["session"] != "grace":
        raise HTTPException(403, {"code": "staff_only"})
    return Principal(name="grace", role=Role.OPERATOR)


async def header_login(x_user: Annotated[str, Header()]) -> Principal:
    return Principal(name=x_user, role=Role.ADMIN)


def sync_login() -> Principal:
    return Principal(name="sync", role=Role.ADMIN)


async def own_error_login() -> Principal:
    raise HostLoginError


async def other_model_login() -> dict[str, str]:
    return {"name": "ada", "role": "admin"}


async def test_the_hosts_login_opens_the_calls_and_is_named_in_the_record() -> None:
    world = World()
    async with client(host(world, cookie_login)) as caller:
        caller.cookies["session"] = "grace"
        assert (await caller.get(STUCK)).status_code == 200
        assert (await caller.post(CLEANUP)).json()["cleaned_jobs"]["total"] == 3
    assert {(row.actor, row.role) for row in world.ledger.rows} == {("grace", "operator")}


@pytest.mark.parametrize("call", CALLS)
async def test_the_hosts_refusals_are_problems_and_recorded(call: str) -> None:
    world = World()
    async with client(host(world, cookie_login)) as caller:
        nobody = await caller.request(*CALLS[call])
        caller.cookies["session"] = "eve"
        low = await caller.request(*CALLS[call])
    assert assert_problem(nobody, 401)["detail"] == "Log in at /login."
    assert nobody.headers["www-authenticate"]
    assert assert_problem(low, 403)["detail"] == "Forbidden."
    assert [(row.actor, row.outcome, row.result["status"]) for row in world.ledger.rows] == [
        ("anonymous", AuditOutcome.REFUSED, 401),
        ("anonymous", AuditOutcome.REFUSED, 403),
    ]


async def test_a_login_that_wants_a_header_refuses_as_401_before_any_parameter_is_read() -> None:
    world = World()
    async with client(host(world, header_login)) as caller:
        for query in ("", "?threshold_minutes=0", "?action=x&action=y"):
            assert_problem(await caller.post(CLEANUP + query), 401)
        assert_problem(await caller.post(CLEANUP + "?action=x", headers={"X-User": "ada"}), 422)


async def test_a_login_may_be_an_ordinary_function() -> None:
    async with client(host(World(), sync_login)) as caller:
        assert (await caller.get(STUCK)).status_code == 200


async def test_an_error_that_only_the_host_knows_is_recorded_and_left_to_the_host() -> None:
    world = World()
    app = host(world, own_error_login)

    @app.exception_handler(HostLoginError)
    async def to_login(request: Request, error: Exception) -> Response:
        return JSONResponse({"go": "/login"}, status_code=418)

    async with client(app) as caller:
        assert (await caller.get(STUCK)).status_code == 418
        assert (await caller.post(CLEANUP)).status_code == 418
    assert [(row.actor, row.outcome) for row in world.ledger.rows] == [("anonymous", AuditOutcome.REFUSED)] * 2


async def test_an_error_that_nobody_knows_is_a_500_problem() -> None:
    world = World()
    async with client(host(world, own_error_login)) as caller:
        assert_problem(await caller.get(STUCK), 500)
    assert world.ledger.rows[0].outcome is AuditOutcome.FAILED


async def test_the_hosts_handlers_dont_answer_for_us() -> None:
    app = host(World(), cookie_login)

    async def handler(request: Request, error: Exception) -> Response:
        return JSONResponse({"host": True}, status_code=418)

    for kind in (HTTPException, Exception, 401, 403, 422):
        app.add_exception_handler(kind, handler)
    async with client(app) as caller:
        assert_problem(await caller.get(STUCK), 401)
        caller.cookies["session"] = "grace"
        assert_problem(await caller.get(f"{STUCK}?limit=0"), 422)


async def test_a_login_that_returns_something_else_is_told_in_a_sentence() -> None:
    world = World()
    before = world.states()
    async with client(host(world, other_model_login)) as caller:
        problem = assert_problem(await caller.post(CLEANUP), 503)
    assert "must return unstick.Principal, not dict" in problem["detail"]
    assert world.states() == before


async def test_what_cant_be_recorded_is_not_left_to_the_host_either() -> None:
    world = World(ledger=MemoryLedger(failure=RuntimeError("gone")))
    app = host(world, own_error_login)

    @app.exception_handler(HostLoginError)
    async def to_login(request: Request, error: Exception) -> Response:
        raise AssertionError

    async with client(app) as caller:
        assert_problem(await caller.get(STUCK), 503)


async def test_the_router_keeps_its_word_under_a_prefix_beside_the_hosts_own_routes() -> None:
    world, app = World(), FastAPI()

    @app.get("/own")
    async def own(number: int) -> int:
        return number

    app.include_router(admin_router(watched={"jobs": world.open}, principal=cookie_login), prefix="/ops")
    async with client(app) as caller:
        assert_problem(await caller.get("/ops" + STUCK), 401)
        assert (await caller.get("/own?number=x")).headers["content-type"] == "application/json"
    assert len(world.ledger.rows) == 1


async def test_the_hosts_test_overrides_reach_our_login() -> None:
    app = host(World(), cookie_login)
    app.dependency_overrides[cookie_login] = sync_login
    async with client(app) as caller:
        assert (await caller.get(STUCK)).status_code == 200

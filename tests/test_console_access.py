"""The way into the console, as browsers take it: cookies, forms from elsewhere, links, roles, and its end."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi import FastAPI

from tests.api_support import AUTH, SECRET, World, assert_problem, bearer, client, service, token
from tests.consoles import running_browser, running_console
from unstick.api.auth import bearer_principal, read_bearer
from unstick.api.factory import create_app
from unstick.config import Settings, SourceSettings
from unstick.console.origin import is_from_here
from unstick.console.router import console_router, link_path
from unstick.console.session import SignIn
from unstick.domain.access import Principal, Role
from unstick.domain.sign_in_failures import FREE
from unstick.pipeline.credentials import TokenOrder, make_token
from unstick.pipeline.signing_in import make_sign_in_link
from unstick.pipeline.users import add_user
from unstick.wiring import open_watched, upgrade_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.pipeline.watched import Watched

PASSWORD = "correct horse battery"
HERE = "http://unstick.test"
FROM_HERE = {"Sec-Fetch-Site": "same-origin"}
GRACE = Principal(name="grace", role=Role.ADMIN)


@dataclass(frozen=True)
class House:
    """The service on a ledger with an administrator and a viewer."""

    watched: Watched

    def app(self, prefix: str = "/console", *, read_only: bool = False) -> FastAPI:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Watched]:
            yield self.watched

        sign_in = SignIn(opened=opened, read=read_bearer(SECRET, AUTH, opened))
        watched = {"main": opened}
        return create_app(
            watched=watched,
            principal=bearer_principal(SECRET, AUTH, opened),
            console=console_router(watched=watched, principal=sign_in, prefix=prefix, read_only=read_only),
            keeps_tokens=True,
            read_only=read_only,
        )

    async def token(self, role: Role, name: str = "ci") -> str:
        order = TokenOrder(actor="grace", name=name, scope=role, lasting=timedelta(days=1))
        return (await make_token(self.watched, order))[1]


@pytest.fixture
async def house(sqlite_database: Database) -> AsyncIterator[House]:
    settings = Settings(sources={"main": SourceSettings.model_validate({"url": sqlite_database.url})})
    await upgrade_database(settings)
    async with open_watched(settings) as watched:
        yield House(watched)


def browser(app: FastAPI, base: str = HERE, root_path: str = "") -> httpx.AsyncClient:
    """Return a browser that shows that it sends forms from the service's own pages, and follows no redirect."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url=base, headers=FROM_HERE)


async def signed_in(house: House, someone: httpx.AsyncClient, role: Role = Role.ADMIN, name: str = "ci") -> None:
    """Sign in by a token, which is quicker than a password."""
    answer = await someone.post("/console/sign-in", data={"token": await house.token(role, name)})
    assert answer.status_code == 303, answer.text


async def test_a_person_signs_in_is_brought_to_where_they_were_and_signs_out(house: House) -> None:
    await add_user(house.watched, "grace", Role.ADMIN, PASSWORD, by="cli:root")
    async with browser(house.app()) as person:
        away = await person.get("/console/tokens?page=2")
        assert away.status_code == 303
        form = await person.get(away.headers["location"])
        [back] = set(re.findall(r'name="next" value="([^"]*)"', form.text))
        wrong = await person.post("/console/sign-in", data={"name": "grace", "password": "not it", "next": back})
        assert wrong.status_code == 401
        assert "The name or the password is wrong." in wrong.text
        assert not person.cookies

        right = await person.post("/console/sign-in", data={"name": "grace", "password": PASSWORD, "next": back})
        assert (right.status_code, right.headers["location"]) == (303, "/console/tokens?page=2")
        assert (await person.get("/console/tokens")).status_code == 200
        copied = dict(person.cookies)

        out = await person.post("/console/sign-out")
        assert (out.status_code, out.headers["location"]) == (303, "/console/sign-in")
        assert not person.cookies
        person.cookies.update(copied)
        assert (await person.get("/console/")).status_code == 303


@pytest.mark.parametrize(
    "asked",
    ["https://evil.test/", "//evil.test", "/\\evil.test", "/elsewhere", "console/", "", "/console/\nx", "/console"],
)
async def test_nobody_is_brought_anywhere_but_to_the_console(house: House, asked: str) -> None:
    async with browser(house.app()) as person:
        form = {"token": await house.token(Role.VIEWER), "next": asked}
        assert (await person.post("/console/sign-in", data=form)).headers["location"] == "/console/"


@pytest.mark.parametrize(
    ("base", "prefix", "root_path", "name", "said"),
    [
        ("http://unstick.test", "/console", "", "unstick_session", {"path=/console/", "httponly", "samesite=lax"}),
        (
            "https://unstick.test",
            "/console",
            "/behind/a/proxy",
            "unstick_session",
            {"path=/behind/a/proxy/console/", "httponly", "samesite=lax", "secure"},
        ),
        (
            "https://unstick.test",
            "",
            "",
            "__Host-unstick_session",
            {"path=/", "httponly", "samesite=lax", "secure"},
        ),
    ],
)
async def test_the_cookie_goes_to_this_console_alone_and_to_no_script(
    house: House, base: str, prefix: str, root_path: str, name: str, said: set[str]
) -> None:
    whole = house.app(prefix) if prefix else _at_the_root(house)
    async with browser(whole, base, root_path) as person:
        answer = await person.post(f"{root_path}{prefix}/sign-in", data={"token": await house.token(Role.VIEWER)})
    cookie, *attributes = re.split(r";\s*", answer.headers["set-cookie"])
    assert cookie.startswith(f"{name}=")
    assert {each.lower() for each in attributes if not each.lower().startswith("expires=")} == said


def _at_the_root(house: House) -> FastAPI:
    """Return a host whose whole site is the console."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Watched]:
        yield house.watched

    app = FastAPI()
    sign_in = SignIn(opened=opened, read=read_bearer(SECRET, AUTH, opened))
    app.include_router(console_router(watched={"main": opened}, principal=sign_in, prefix=""))
    return app


FORMS = {
    "from a page of ours": ({"sec-fetch-site": "same-origin"}, True),
    "from a page of ours, whatever its origin says": ({"sec-fetch-site": "same-origin", "origin": "null"}, True),
    "from another site": ({"sec-fetch-site": "cross-site", "origin": "http://unstick.test"}, False),
    "from a sister site": ({"sec-fetch-site": "same-site", "origin": "http://unstick.test"}, False),
    "sent anew by a person": ({"sec-fetch-site": "none", "origin": "http://unstick.test"}, True),
    "by nobody knows what": ({"sec-fetch-site": "none"}, False),
    "over plain HTTP from here": ({"origin": "http://unstick.test"}, True),
    "behind a proxy that ends TLS": ({"origin": "https://unstick.test"}, True),
    "over plain HTTP from another site": ({"origin": "http://evil.test"}, False),
    "from another port": ({"origin": "http://unstick.test:8001"}, False),
    "from a longer name": ({"origin": "http://unstick.test.evil.test"}, False),
    "from a sandbox": ({"origin": "null"}, False),
    "from a broken origin": ({"origin": "http://[unstick.test"}, False),
    "without a word of where from": ({}, False),
    "with a bearer's token": ({"authorization": "Bearer x", "origin": "http://evil.test"}, True),
    "with a password that browsers send by themselves": ({"authorization": "Basic eDp4"}, False),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_taken_from_pages_of_ours_alone(form: str) -> None:
    headers, taken = FORMS[form]
    assert is_from_here("POST", {"host": "unstick.test", **headers}) is taken
    assert is_from_here("GET", {"host": "unstick.test", **headers})


async def test_a_form_from_elsewhere_changes_nothing_though_it_bears_the_cookie(house: House) -> None:
    async with browser(house.app()) as person:
        await signed_in(house, person)
        for path in ("/console/tokens", "/console/sign-out", "/console/sessions/revoke", "/console/preferences"):
            sent = {"name": "token:ci", "role": "admin", "days": "1"}
            answer = await person.post(path, data=sent, headers={"Sec-Fetch-Site": "cross-site"})
            assert answer.status_code == 403
        assert (await person.get("/console/tokens")).text.count("/revoke") == 1


async def test_two_browsers_are_two_sessions_and_an_administrator_ends_either(house: House) -> None:
    app = house.app()
    async with browser(app) as admin, browser(app) as viewer:
        await signed_in(house, admin)
        await signed_in(house, viewer, Role.VIEWER, "wall")
        assert (await viewer.get("/console/")).status_code == 200
        page = await admin.get("/console/sessions")
        assert page.text.count("token:ci") >= 1
        [theirs] = re.findall(r"token:wall</th>.*?/console/sessions/([0-9a-f]{16})/revoke", page.text, re.DOTALL)
        assert (await admin.post(f"/console/sessions/{theirs}/revoke")).status_code == 303
        gone = await viewer.get("/console/")
        assert (gone.status_code, gone.headers["location"]) == (303, "/console/sign-in?next=%2Fconsole%2F")
        assert (await viewer.get("/console/", headers={"Sec-Fetch-Dest": "empty"})).status_code == 401
        assert (await viewer.post("/console/sessions/revoke", data={"name": "token:wall"})).status_code == 401
        assert (await admin.get("/console/")).status_code == 200


async def test_a_viewer_neither_sees_tokens_nor_ends_what_is_anothers(house: House) -> None:
    app = house.app()
    async with browser(app) as admin, browser(app) as viewer:
        await signed_in(house, admin)
        await signed_in(house, viewer, Role.VIEWER, "wall")
        assert (await viewer.get("/console/tokens")).status_code == 403
        assert (
            await viewer.post("/console/tokens", data={"name": "x", "role": "admin", "days": "1"})
        ).status_code == 403
        sessions = (await viewer.get("/console/sessions")).text
        assert "token:wall" in sessions
        assert "token:ci" not in sessions
        assert (await viewer.post("/console/sessions/revoke", data={"name": "token:ci"})).status_code == 404
        assert (await admin.get("/console/")).status_code == 200


async def test_looking_at_a_link_does_not_use_it_up_and_using_it_does(house: House) -> None:
    link = await make_sign_in_link(house.watched, GRACE)
    app = house.app()
    async with browser(app) as person, browser(app) as another:
        for _ in range(2):
            page = await person.get(link_path(link))
            assert page.status_code == 200
            assert page.headers["referrer-policy"] == "strict-origin"
        used = await person.post("/console/sign-in/link", data={"key": link.text})
        assert (used.status_code, used.headers["location"]) == (303, "/console/")
        assert (await person.get("/console/tokens")).status_code == 200

        again = await another.post("/console/sign-in/link", data={"key": link.text})
        assert again.status_code == 401
        assert "This link was used already, or it has expired." in again.text
        assert not another.cookies


async def test_a_token_is_shown_once_and_opens_the_api_until_it_is_revoked(house: House) -> None:
    app = house.app()
    async with browser(app) as admin, client(app) as program:
        await signed_in(house, admin)
        made = await admin.post("/console/tokens", data={"name": "deploy", "role": "viewer", "days": "7"})
        [secret] = re.findall(r"<code[^>]*>(unstick_[\w-]+)</code>", made.text)
        listed = (await admin.get("/console/tokens")).text
        assert secret not in listed
        [token_id] = re.findall(r"token:deploy <small[^>]*>([0-9a-f]{16})", listed)

        stats = "/api/v1/admin/stats"
        assert (await program.get(stats, headers=bearer(secret))).status_code == 200
        assert (await admin.post(f"/console/tokens/{token_id}/revoke")).status_code == 303
        assert_problem(await program.get(stats, headers=bearer(secret)), 401)
        wrong = await admin.post("/console/tokens", data={"name": "token:x", "role": "viewer", "days": "7"})
        assert wrong.status_code == 422
        for role, days in (("king", "7"), ("admin", "0"), ("admin", "366"), ("admin", "7.5")):
            sent = {"name": "x", "role": role, "days": days}
            assert (await admin.post("/console/tokens", data=sent)).status_code == 422


async def test_guessing_at_the_form_is_answered_with_when_to_come_back(house: House) -> None:
    async with browser(house.app()) as person:
        answers = [await person.post("/console/sign-in", data={"token": "a guess"}) for _ in range(4 * FREE)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:FREE] == [401] * FREE
    slowed = answers[statuses.index(429)]
    assert int(slowed.headers["retry-after"]) >= 1
    assert "Try again in" in slowed.text


async def test_read_only_means_that_whoever_calls_changes_nothing(house: House) -> None:
    app = house.app(read_only=True)
    async with browser(app) as admin, client(app, Role.ADMIN) as program:
        await signed_in(house, admin)
        assert (await admin.get("/console/tokens")).status_code == 200
        refused = await admin.post("/console/tokens", data={"name": "x", "role": "admin", "days": "1"})
        assert refused.status_code == 403
        assert "read-only" in refused.text
        assert (await admin.post("/console/sign-out")).status_code == 303

        assert (await program.get("/api/v1/admin/jobs/stuck")).status_code == 200
        for method, path in CHANGES:
            problem = assert_problem(await program.request(method, path), 403)
            assert "read-only" in problem["detail"]


CHANGES = [
    ("POST", "/api/v1/admin/jobs/cleanup"),
    ("POST", "/api/v1/admin/jobs/main/1/recover"),
    ("POST", "/api/v1/admin/jobs/main/1/snooze?minutes=1&reason=x"),
    ("DELETE", "/api/v1/admin/jobs/main/1/snooze"),
    ("POST", "/api/v1/admin/brake/release"),
    ("POST", "/api/v1/admin/operations/1/undo"),
    ("POST", "/api/v1/admin/tokens?name=x&role=admin"),
]

NEEDED = {
    "find_stuck_jobs": Role.VIEWER,
    "platform_stats": Role.VIEWER,
    "tell_job_story": Role.VIEWER,
    "list_snoozes": Role.VIEWER,
    "read_plan": Role.VIEWER,
    "find_brake": Role.VIEWER,
    "late_finishes": Role.VIEWER,
    "suggestions": Role.VIEWER,
    "replay": Role.VIEWER,
    "stream_events": Role.VIEWER,
    "list_stuck_jobs": Role.VIEWER,
    "tell_overview": Role.VIEWER,
    "read_audit_log": Role.VIEWER,
    "export_audit_log": Role.VIEWER,
    "plan_cleanup": Role.OPERATOR,
    "clean_up_stuck_jobs": Role.OPERATOR,
    "recover_job": Role.OPERATOR,
    "apply_plan": Role.OPERATOR,
    "undo_operation": Role.OPERATOR,
    "undo_job": Role.OPERATOR,
    "snooze_job": Role.ADMIN,
    "unsnooze_job": Role.ADMIN,
    "release_brake": Role.ADMIN,
    "list_tokens": Role.ADMIN,
    "make_token": Role.ADMIN,
    "revoke_token": Role.ADMIN,
}


async def test_a_token_of_one_role_does_nothing_that_needs_another(house: House) -> None:
    """Every call of the API, by the roles that may and may not; parameters that mean nothing keep it from acting."""
    app = house.app()
    tokens = {role: await house.token(role, role.value) for role in Role}
    found: dict[str, Role] = {}
    async with client(app) as program:
        for path, methods in app.openapi()["paths"].items():
            if not path.startswith("/api/"):
                continue
            asked = re.sub(r"\{\w+\}", "0" * 16, path) + "?nonsense=1"
            for method, operation in methods.items():
                answers = {
                    role: (await program.request(method, asked, headers=bearer(sent))).status_code
                    for role, sent in tokens.items()
                }
                assert set(answers.values()) <= {403, 422}, (operation["operationId"], answers)
                found[operation["operationId"]] = next(role for role in Role if answers[role] == 422)
                assert answers[Role.ADMIN] == 422
    assert found == NEEDED


async def test_the_api_makes_lists_and_revokes_tokens(house: House) -> None:
    async with client(house.app()) as program:
        admin, path = bearer(token(Role.ADMIN, "ada")), "/api/v1/admin/tokens"
        made = (await program.post(f"{path}?name=ci&role=operator&days=2", headers=admin)).json()
        assert (made["token"]["name"], made["token"]["role"]) == ("token:ci", "operator")
        assert made["token"]["made_by"] == "ada"
        listed = (await program.get(path, headers=admin)).json()
        assert [each["id"] for each in listed["tokens"]] == [made["token"]["id"]]
        assert made["secret"] not in json.dumps(listed)
        ended = await program.delete(f"{path}/{made['token']['id']}", headers=admin)
        assert ended.json() == {"id": made["token"]["id"], "revoked": True}
        assert_problem(await program.delete(f"{path}/{made['token']['id']}", headers=admin), 404)
        assert_problem(await program.post(f"{path}?name=a:b&role=operator", headers=admin), 422)
        assert_problem(await program.post(f"{path}?name=ci&role=operator&days=366", headers=admin), 422)
        assert_problem(await program.get(path, headers=bearer(made["secret"])), 401)


async def test_where_a_host_says_who_may_call_there_are_no_tokens_of_ours() -> None:
    async with client(service(World()), Role.ADMIN) as program:
        assert (await program.get("/api/v1/admin/tokens")).status_code == 404


async def test_a_bearer_reads_pages_as_a_program_and_gets_no_cookie(house: House) -> None:
    async with client(house.app()) as program:
        page = await program.get("/console/", headers=bearer(await house.token(Role.VIEWER)))
        assert page.status_code == 200
        assert "token:ci" in page.text
        assert not program.cookies
        assert (
            await program.get("/console/", headers={**bearer("nonsense"), "Sec-Fetch-Dest": "empty"})
        ).status_code == 401


def test_a_browser_signs_in_works_and_signs_out_by_plain_http_under_any_name(sqlite_database: Database) -> None:
    """Over plain HTTP a browser says where a form comes from by `Origin` alone, if the page lets it."""
    with running_console(sqlite_database) as console:
        asyncio.run(_add_grace(console.settings))
        here = console.url.replace("127.0.0.1", "unstick.test")
        with running_browser("--host-resolver-rules=MAP unstick.test 127.0.0.1") as chromium:
            page = chromium.new_page()
            complaints: list[str] = []
            page.on("console", lambda said: complaints.append(said.text))
            page.goto(f"{here}/console/tokens")
            page.fill("[name=name]", "grace")
            page.fill("[name=password]", PASSWORD)
            page.click(".sign-in [data-kind=primary]")
            assert page.url == f"{here}/console/tokens"
            [cookie] = page.context.cookies()
            assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("unstick_session", True, "Lax")
            page.fill("main [name=name]", "deploy")
            page.click("main button[data-kind=primary]")
            assert page.inner_text("main code").startswith("unstick_")
            page.locator("form[action$='/sign-out'] button:visible").click()
            assert page.url == f"{here}/console/sign-in"
            page.goto(f"{here}/console/tokens")
            assert page.url.startswith(f"{here}/console/sign-in?next=")
            assert page.context.cookies() == []
            assert complaints == []


async def _add_grace(settings: Settings) -> None:
    async with open_watched(settings) as watched:
        await add_user(watched, "grace", Role.ADMIN, PASSWORD, by="cli:root")

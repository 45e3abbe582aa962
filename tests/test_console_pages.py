"""Pages as a browser gets them: who may see them, under which prefix, and what they let run."""

import json
import re
from collections.abc import Awaitable, Callable
from html import escape
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api_support import World, client, job
from tests.test_admin_service import HOUR, Host
from tests.test_admin_service import host as app_host  # noqa: F401 - a fixture
from unstick import Policy
from unstick.admin import console_router as hosted_console
from unstick.api.audit import _cell
from unstick.console.recent import LONGEST_SECONDS, Recent
from unstick.console.router import console_router
from unstick.domain.access import Principal, Role
from unstick.domain.events import QueueState
from unstick.domain.job import JobState
from unstick.domain.queue import Workers
from unstick.ports import OpenJobs

FROM_HERE = {"Sec-Fetch-Site": "same-origin"}
"""What a browser says of a form that a page of the console sent."""


async def ada() -> Principal:
    return Principal(name="ada", role=Role.ADMIN)


def host(world: World, prefix: str = "", *, read_only: bool = False) -> FastAPI:
    """Return a host's app with the console in it."""
    app = FastAPI()
    console = console_router(watched={"main": world.open}, principal=ada, read_only=read_only)
    app.include_router(console, prefix=prefix)
    return app


@pytest.mark.parametrize(("prefix", "root_path"), [("", ""), ("/staff/jobs", ""), ("/staff", "/behind/a/proxy")])
async def test_every_link_of_a_page_keeps_the_prefix_it_is_mounted_under(prefix: str, root_path: str) -> None:
    transport = httpx.ASGITransport(host(World(), prefix), root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://unstick.test") as caller:
        page = await caller.get(f"{root_path}{prefix}/console/")
    assert page.status_code == 200, page.text
    links = re.findall(r'(?:href|src|action)="([^"#]+)"', page.text)
    assert links
    assert [link for link in links if not link.startswith(f"{root_path}{prefix}/console/")] == []


async def test_a_page_lets_nothing_run_but_its_own_files_and_they_are_kept_by_browsers() -> None:
    async with client(host(World())) as caller:
        page = await caller.get("/console/")
        files = [await caller.get(name) for name in re.findall(r'(?:href|src)="([^"]+/static/[^"]+)"', page.text)]
    assert page.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in page.headers["content-security-policy"]
    assert {file.headers["content-type"].partition(";")[0] for file in files} == {
        "text/css",
        "text/javascript",
        "image/svg+xml",
    }
    assert all("immutable" in file.headers["cache-control"] for file in files)


@pytest.mark.parametrize("job_id", ["a/b", "50% off?#1", 2**63 - 1, "ї ж", "<b>&amp;"])
async def test_a_job_is_found_under_whatever_id_it_has_and_shown_exactly(job_id: int | str) -> None:
    world = World()
    world.source.jobs = {job_id: job(job_id, JobState.RUNNING, 45)}
    async with client(host(world)) as caller:
        listed = await caller.get("/console/stuck")
        (link,) = set(re.findall(r'class="id" href="([^"]+)"', listed.text))
        shown = await caller.get(link)
    assert shown.status_code == 200, shown.text
    assert f"<title>{escape(str(job_id))} · Unstick</title>" in shown.text


async def test_what_a_page_does_not_know_is_a_page_that_says_so() -> None:
    async with client(host(World())) as caller:
        unknown = await caller.get("/console/jobs/main/77")
        wrong = await caller.get("/console/stuck?reason=held&colour=red")
        nowhere = await caller.get("/console/policies")
    assert (unknown.status_code, wrong.status_code, nowhere.status_code) == (404, 422, 404)
    assert "There is no such page." in nowhere.text
    assert "Source &#39;main&#39; has no job 77." in unknown.text
    assert "is no reason of stuck jobs" in wrong.text
    assert "colour: is not a parameter of this call" in wrong.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"json": {"action": "retry"}}, 415),
        ({"data": {"action": "retry", "reason": "x" * 20_000}}, 413),
        ({"data": {"action": "retry", "reason": "a\0b"}}, 422),
        ({"data": {"action": "destroy"}}, 422),
        ({"data": {"sudo": "1"}}, 422),
    ],
)
async def test_a_form_that_means_nothing_changes_nothing(sent: dict[str, Any], status: int) -> None:
    world = World()
    before = world.states()
    async with client(host(world)) as caller:
        answer = await caller.post("/console/recover/main/2", headers=FROM_HERE, **sent)
    assert (answer.status_code, world.states()) == (status, before)


async def test_where_nothing_can_be_changed_each_button_says_that_it_is_so_for_everyone() -> None:
    async with client(host(World(), read_only=True)) as caller:
        for path in ("/console/", "/console/stuck", "/console/jobs/main/2"):
            page = (await caller.get(path)).text
            assert re.findall(r"<button[^>]* disabled", page), path
            assert "The service is read-only" in page, path
            assert "This needs the role" not in page, path


async def test_after_choosing_a_language_nobody_is_led_elsewhere() -> None:
    async with client(host(World())) as caller:
        for back in ("https://evil.test/", "//evil.test", "/\\evil.test", "", "javascript:alert(1)"):
            answer = await caller.post("/console/preferences", data={"back": back, "language": "uk"}, headers=FROM_HERE)
            assert (answer.status_code, answer.headers["location"]) == (303, "/console/")
        chosen = {"back": "/console/audit?all=true", "theme": "dark"}
        kept = await caller.post("/console/preferences", data=chosen, headers=FROM_HERE)
    assert kept.headers["location"] == "/console/audit?all=true"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_hosts_app_includes_the_console_on_its_own_sessions(app_host: Host) -> None:  # noqa: F811
    stuck = await app_host.add("running", age=HOUR)
    app = FastAPI()
    app.include_router(hosted_console(app_host.sessions, auth=ada, jobs=app_host.jobs, policy=Policy()), prefix="/ops")
    async with client(app) as caller:
        listed = await caller.get("/ops/console/stuck")
        assert f'href="/ops/console/jobs/main/{stuck}"' in listed.text
        form = {"action": "mark_failed", "reason": "=1+1"}
        done = await caller.post(f"/ops/console/recover/main/{stuck}", data=form, headers=FROM_HERE)
        assert done.headers["location"] == f"/ops/console/jobs/main/{stuck}?came_to=applied"
        csv = await caller.get("/ops/console/audit/csv")
        lines = (await caller.get("/ops/console/audit/json?outcome=started")).text.splitlines()
    assert (await app_host.job(stuck)).status == "failed"
    assert csv.headers["content-type"] == "text/csv; charset=utf-8"
    assert len(csv.text.splitlines()) == 3
    assert [json.loads(line)["parameters"]["reason"] for line in lines] == ["=1+1"]


async def test_a_cell_that_a_spreadsheet_would_run_is_written_as_text() -> None:
    assert [_cell(each) for each in ("=cmd()", "-1", "ada", None, {"a": 1})] == [
        "'=cmd()",
        "'-1",
        "ada",
        "",
        '{"a": 1}',
    ]


async def test_a_queue_without_a_worker_is_loud_and_one_whose_workers_dont_tell_is_said_to_be_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, queues = World(), {"gpu": 0, "mail": 2, "slow": None}
    jobs = {QueueState(queue, JobState.QUEUED): 1 for queue in queues}
    known: dict[str | None, int] = {queue: living for queue, living in queues.items() if living is not None}

    async def open_jobs() -> OpenJobs:
        return OpenJobs(by_queue=jobs, queued_since=None, running_since=None, workers=Workers(by_queue=known))

    monkeypatch.setattr(world.source, "open_jobs", open_jobs)
    async with client(host(world)) as caller:
        page = (await caller.get("/console/")).text
    rows = {queue: next(row for row in page.split("<tr>") if f'row">{queue}' in row) for queue in queues}
    assert '<span class="pill" data-tone="bad">0</span>' in rows["gpu"]
    assert '<td class="number" data-label="workers">2</td>' in rows["mail"]
    assert ">unknown</span>" in rows["slow"]


async def test_only_what_was_dear_is_told_again_and_not_for_long() -> None:
    now, found = [0.0], list[float]()
    recent = Recent[float](lambda: now[0])

    def taking(seconds: float) -> Callable[[], Awaitable[float]]:
        async def find() -> float:
            now[0] += seconds
            found.append(now[0])
            return now[0]

        return find

    for _ in range(2):
        await recent.get("cheap", taking(0.05))
    assert len(found) == 2
    first = await recent.get("dear", taking(0.5))
    now[0] += 9.9
    assert await recent.get("dear", taking(0.5)) == first
    assert await recent.get("another", taking(0.5)) != first
    now[0] += LONGEST_SECONDS
    assert await recent.get("dear", taking(0.5)) != first

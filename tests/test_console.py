"""The console as people use it: the real service over a real database, in a real browser."""

from __future__ import annotations

import re
from html import unescape
from importlib import resources
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.consoles import DESK, PHONE, Console, a_person, run, running_browser, running_console
from unstick.domain.access import Role
from unstick.domain.brake import Brake
from unstick.wiring import open_watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Database

DATABASES = ("sqlite", "postgres18")
NARROW = (360, 740)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def console(database: Database) -> Iterator[Console]:
    with running_console(database, policy={"rules": [{"kind": "thesis.*", "action": "retry"}]}) as console:
        yield console


@pytest.fixture
def light(sqlite_database: Database) -> Iterator[Console]:
    with running_console(sqlite_database) as console:
        yield console


def pages_of(console: Console, job: int, operation: int, plan: str) -> dict[str, str]:
    return {
        "overview": "/",
        "stuck": "/stuck",
        "filtered": "/stuck?reason=silent&text=worker",
        "nothing": "/stuck?kind=none",
        "job": f"/jobs/main/{job}",
        "plan": plan,
        "operation": f"/operations/main/{operation}",
        "sweeps": "/sweeps",
        "audit": "/audit?all=true",
        "policy": "/policy",
        "replay": "/replay",
        "sources": "/sources",
    }


def recover_from_its_page(page: Page, console: Console, job: int, why: str) -> None:
    page.goto(console.at(f"/jobs/main/{job}"))
    page.get_by_label("Why (for the audit log)").fill(why)
    page.get_by_role("button", name="Recover this job").click()


def test_a_job_gets_stuck_and_is_seen_previewed_recovered_run_again_and_undone(
    console: Console, browser: Browser
) -> None:
    with a_person(browser, console) as ada:
        page = ada.page
        page.goto(console.at())
        expect(page.get_by_role("heading", name="Nothing is stuck")).to_be_visible()
        lost = console.add("running", 45, worker="worker-3:6174:b00t", attempt=1)
        plan = console.add("queued", 20, job_type="thesis.plan")
        page.reload()
        expect(page.get_by_role("heading", name="Silent 1 job")).to_be_visible()
        row = page.get_by_role("listitem").filter(has_text=str(lost)).filter(has_text="essay.write")
        expect(row).to_contain_text("45 min")
        expect(row).to_contain_text("it may be silent for 30 min. Worker worker-3:6174 had it.")

        page.get_by_role("link", name="All stuck jobs").click()
        page.get_by_role("button", name="Preview for all of them…").click()
        expect(page.get_by_role("heading", name="2 jobs would be changed")).to_be_visible()
        expect(page.get_by_role("main")).to_contain_text("1 of them was running and may have half run.")
        assert (console.status(lost), console.status(plan)) == ("running", "queued")

        page.get_by_role("button", name="Recover 2 jobs").click()
        expect(page.get_by_role("status")).to_contain_text("2 jobs were recovered.")
        assert (console.status(lost), console.status(plan)) == ("failed", "queued")

        console.update(plan, status="running", attempt=2)  # a worker takes it
        page.get_by_role("button", name="Undo all of it").click()
        expect(page.get_by_role("status")).to_contain_text("1 job was put back as it was.")
        assert (console.status(lost), console.status(plan)) == ("running", "running")

        page.goto(console.at(f"/jobs/main/{lost}"))
        story = page.get_by_role("list").filter(has_text="It was enqueued.")
        expect(story).to_contain_text("marked it failed")
        expect(story).to_contain_text("put it back as it was")
        page.goto(console.at("/audit"))
        expect(page.get_by_role("main")).to_contain_text("Cleanup by a plan")


def test_two_administrators_who_act_at_once_both_learn_what_is_so(console: Console, browser: Browser) -> None:
    job = console.add("running", 45)
    with a_person(browser, console) as ada, a_person(browser, console, name="grace") as grace:
        for each in (ada, grace):
            each.page.goto(console.at("/stuck"))
            each.page.get_by_role("button", name="Preview for all of them…").click()
        ada.page.get_by_role("button", name="Recover 1 job").click()
        grace.page.get_by_role("button", name="Recover 1 job").click()
        expect(ada.page.get_by_role("status")).to_contain_text("1 job was recovered.")
        expect(grace.page.get_by_role("status")).to_contain_text("0 jobs were recovered.")
        grace.page.goto(console.at(f"/jobs/main/{job}"))
        expect(grace.page.get_by_role("main")).to_contain_text("ada marked it failed")


def test_all_of_it_works_without_scripts_and_a_beating_job_is_left_alone(light: Console, browser: Browser) -> None:
    job, beating = light.add("running", 45), light.add("running", 50)
    with a_person(browser, light, java_script_enabled=False) as ada:
        page = ada.page
        page.goto(light.at("/stuck"))
        expect(page.get_by_role("main")).to_contain_text(re.compile(r"at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"))
        page.get_by_role("button", name="Preview for all of them…").click()
        light.add("running", 0)
        light.update(beating, updated_at=None, started_at=None)
        page.get_by_role("button", name="Recover 2 jobs").click()
        expect(page.get_by_role("status")).to_contain_text("1 job was recovered.")
        assert (light.status(job), light.status(beating)) == ("failed", "running")
        page.goto(light.at(f"/jobs/main/{job}"))
        page.get_by_role("button", name="Undo", exact=True).click()
        expect(page.get_by_role("status")).to_contain_text("1 job was put back")
        page.goto(light.at(f"/jobs/main/{job}"))
        page.get_by_label("Why", exact=True).fill("the disk is being replaced")
        page.get_by_role("button", name="Snooze").click()
        expect(page.get_by_role("main")).to_contain_text("the disk is being replaced")
        page.goto(light.at("/stuck"))
        expect(page.get_by_role("heading", name="Nothing is stuck in main")).to_be_visible()


def test_every_page_is_accessible_fits_and_is_light_in_both_themes(light: Console, browser: Browser) -> None:
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text()
    jobs = [light.add("running", 45, worker="w:1:b") for _ in range(3)]
    light.add("queued", 60)
    with a_person(browser, light) as ada:
        page, sent = ada.page, list[int]()
        page.on(
            "response",
            lambda answer: sent.append(len(answer.body())) if answer.ok and "events" not in answer.url else None,
        )
        recover_from_its_page(page, light, jobs[0], "worker w is gone")
        page.goto(light.at("/stuck"))
        page.get_by_role("button", name="Preview for all of them…").click()
        plan = page.url.removeprefix(light.at(""))
        page.goto(light.at("/sweeps"))
        operation = int(page.get_by_role("link", name="#").first.inner_text().removeprefix("#"))
        found = []
        for name, path in pages_of(light, jobs[0], operation, plan).items():
            sent.clear()
            page.goto(light.at(path), wait_until="load")
            assert len(sent) <= 8, (name, len(sent))
            assert sum(sent) <= 100 * 1024, (name, sum(sent))
            page.evaluate(axe)
            for scheme, asked in (("light", "{}"), ("dark", "{runOnly: ['color-contrast']}")):
                page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
                broken = page.evaluate(f"async () => (await axe.run(document, {asked})).violations")
                found += [(name, scheme, each["id"], each["nodes"][0]["html"][:200]) for each in broken]
            for size in (NARROW, DESK):
                page.set_viewport_size({"width": size[0], "height": size[1]})
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= size[0], (name, size, wide)
        assert found == []


def test_all_pages_say_the_same_of_a_job(light: Console, browser: Browser) -> None:
    stuck, healthy = light.add("running", 45), light.add("running", 3)
    with a_person(browser, light) as ada:
        page = ada.page
        for name in ("/", "/stuck"):
            page.goto(light.at(name))
            expect(page.get_by_role("link", name=f"Recover job {stuck}", exact=True)).to_be_visible()
            expect(page.get_by_role("link", name=f"Recover job {healthy}", exact=True)).to_have_count(0)
        page.goto(light.at(f"/jobs/main/{stuck}"))
        expect(page.get_by_role("main")).to_contain_text("essay.writeStuck Silent")
        page.goto(light.at(f"/jobs/main/{healthy}"))
        expect(page.get_by_role("main")).to_contain_text("Healthy")
        expect(page.get_by_role("button", name="Recover this job")).to_be_disabled()
        expect(page.get_by_role("main")).to_contain_text("Only a stuck job can be recovered.")
        page.goto(light.at("/sources"))
        expect(page.get_by_role("main")).to_contain_text("Stuck1")


def test_a_viewer_sees_all_of_it_and_a_button_that_cant_work_says_why(light: Console, browser: Browser) -> None:
    job = light.add("running", 45)
    with a_person(browser, light, role=Role.VIEWER, name="eve") as eve:
        page = eve.page
        page.goto(light.at("/stuck"))
        expect(page.get_by_role("button", name="Preview for all of them…")).to_be_disabled()
        expect(page.get_by_text("This needs the role operator.")).to_be_visible()
        page.goto(light.at(f"/jobs/main/{job}"))
        expect(page.get_by_role("button", name="Recover this job")).to_be_disabled()
        answer = page.request.post(light.at(f"/recover/main/{job}"), form={"action": "mark_failed"})
        assert answer.status == 403
        assert light.status(job) == "running"


def pull_the_brake(console: Console, suspects: int) -> None:
    async def pull() -> None:
        async with open_watched(console.settings) as watched:
            assert watched.brakes is not None
            now = await watched.source.clock()
            cause = "host worker-9 is gone: it had 60 of 61 of them"
            await watched.brakes.pull(
                Brake(source="main", at=now, suspects=suspects, still_open=suspects + 9, cause=cause)
            )

    run(pull())


def test_an_admin_releases_the_brake_and_an_operator_sees_why_they_can_not(light: Console, browser: Browser) -> None:
    pull_the_brake(light, 61)
    with a_person(browser, light, role=Role.OPERATOR, name="otto") as otto:
        page = otto.page
        page.goto(light.at("/sources"))
        release = page.get_by_role("button", name="Release the brake")
        expect(release).to_be_disabled()
        expect(release).to_have_accessible_description("This needs the role admin.")
        from_here = {"Sec-Fetch-Site": "same-origin"}
        refused = page.request.post(light.at("/sources/main/release-brake"), headers=from_here)
        assert refused.status == 403
        assert "needs the role admin" in refused.text()
    with a_person(browser, light) as ada:
        page = ada.page
        page.goto(light.at())
        expect(page.get_by_role("heading", name="The brake holds main 61 jobs")).to_be_visible()
        page.get_by_role("link", name="Look and release").click()
        expect(page.get_by_role("main")).to_contain_text("host worker-9 is gone: it had 60 of 61 of them")
        page.get_by_role("button", name="Release the brake").click()
        expect(page.get_by_role("button", name="Release the brake")).to_have_count(0)
        page.goto(light.at("/audit"))
        expect(
            page.get_by_role("listitem").filter(has_text="ada").filter(has_text="Release of the brake")
        ).to_have_count(1)
        page.goto(light.at())
        expect(page.get_by_role("heading", name="Nothing is stuck")).to_be_visible()


def test_a_source_that_is_away_is_said_to_be_and_the_other_is_shown(
    sqlite_database: Database, browser: Browser
) -> None:
    away = "postgresql://nobody@127.0.0.1:1/none"  # nobody listens there
    both = {"main": {"url": sqlite_database.url}, "reports": {"url": away}}
    with running_console(sqlite_database, sources=both) as console, a_person(browser, console) as ada:
        page, stuck = ada.page, console.add("running", 45)
        page.goto(console.at())
        expect(page.get_by_role("heading", name="Source reports doesn't answer")).to_be_visible()
        expect(page.get_by_role("heading", name="Silent 1 job main")).to_be_visible()
        expect(page.get_by_role("link", name=f"Recover job {stuck}", exact=True)).to_be_visible()
        page.goto(console.at("/sources"))
        expect(page.get_by_role("region", name="reports")).to_contain_text("Its database, or the ledger's, doesn't")
        expect(page.get_by_role("region", name="main")).to_contain_text("answers")
        for path in ("/stuck", "/sweeps", "/audit", "/policy", "/replay"):
            answer = page.goto(console.at(path))
            assert answer is not None
            assert answer.ok, path
        elsewhere = page.request.get(console.at("/stuck?source=reports"))
        assert elsewhere.status == 503
        assert "doesn't answer" in unescape(elsewhere.text())


def test_what_changes_is_shown_by_itself_but_never_under_the_pointer(light: Console, browser: Browser) -> None:
    job = light.add("running", 45)
    with a_person(browser, light) as ada, a_person(browser, light, name="grace") as grace:
        page = ada.page
        page.goto(light.at("/stuck"))
        button = page.get_by_role("link", name=f"Recover job {job}")
        button.hover()
        recover_from_its_page(grace.page, light, job, "it is gone")
        news = page.get_by_role("button", name="Changes: 1. Show them")
        expect(news).to_be_visible()
        expect(button).to_be_visible()
        news.click()
        expect(page.get_by_role("heading", name="Nothing is stuck in main")).to_be_visible()
        page.mouse.move(5, 5)
        light.add("running", 50)
        recover_from_its_page(grace.page, light, light.add("running", 70), "another")
        expect(page.get_by_role("main")).to_contain_text("1 job is stuck")


def test_the_console_speaks_ukrainian_by_the_browser_or_by_choice(light: Console, browser: Browser) -> None:
    for minutes in (45, 46):
        light.add("running", minutes)
    with a_person(browser, light, locale="uk-UA") as ada:
        page = ada.page
        page.goto(light.at())
        expect(page.locator("html")).to_have_attribute("lang", "uk")
        expect(page.get_by_role("main")).to_contain_text("2 завдання")
        page.get_by_role("button", name="English").first.click()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        page.get_by_role("button", name="Dark").first.click()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        expect(page.locator("html")).to_have_attribute("lang", "en")


def test_a_phone_has_a_menu_and_everything_can_be_done_by_keys(light: Console, browser: Browser) -> None:
    job = light.add("running", 45)
    with a_person(browser, light, size=PHONE) as ada:
        page = ada.page
        page.goto(light.at())
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.locator("summary").filter(has_text="Menu").focus()
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Stuck jobs", exact=True).focus()
        page.keyboard.press("Enter")
        page.get_by_role("link", name=f"Recover job {job}").focus()
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Recover this job").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("Done: it was recovered.")
        assert light.status(job) == "failed"

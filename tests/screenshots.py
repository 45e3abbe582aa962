"""`python -m tests.screenshots`: a picture of every page, in each theme, size and language, to look at."""

from __future__ import annotations

import argparse
import random
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.consoles import DESK, Console, Person, a_person, run, running_browser, running_console
from tests.servers import Database
from unstick.console.language import LANGUAGES
from unstick.domain.access import Role
from unstick.domain.brake import Brake
from unstick.domain.sign_in_failures import FREE
from unstick.domain.wording import Phrase
from unstick.sql import tables
from unstick.wiring import open_watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from playwright.sync_api import Browser, Page

MINUTES = {"essay.write": (1, 9), "thesis.plan": (10, 55), "slides.render": (0.2, 2), "report.monthly": (4, 20)}
QUEUES = {"thesis.plan": "slow", "report.monthly": "reports"}
POLICY = {
    "rules": [
        {"kind": "thesis.*", "running_after": "2h", "action": "retry"},
        {"kind": "report.*", "queued_after": "15m"},
    ]
}
AWAY = "postgresql://nobody@127.0.0.1:1/none"
"""Nobody listens there."""
NARROW = (360, 780)
SIZES = {"desk": DESK, "phone": NARROW}
THEMES = ("light", "dark")


def fill(console: Console) -> list[int]:
    """Give the platform a past of two days, some healthy jobs, and some that are stuck; return some of their ids."""
    chance = random.Random(4)  # noqa: S311 - pictures that are the same each time
    console.run(sa.insert(tables.jobs).values([_past(chance) for _ in range(400)]))
    gone = [console.add("running", 60 + place, worker="worker-4:12:b", attempt=1) for place in range(3)]
    stuck = console.add("running", 47.4, worker="worker-3:6174:b", attempt=1, progress=60)
    healthy = console.add("running", 4, job_type="thesis.plan", queue="slow", worker="worker-1:512:b", attempt=1)
    console.add("running", 133, job_type="thesis.plan", queue="slow", worker="worker-1:511:b", attempt=2, progress=15)
    console.add("queued", 22, job_type="report.monthly", queue="reports")
    console.add("queued", 95, job_type="slides.render", queue="gpu")
    console.add("queued", 1, job_type="slides.render")
    return [stuck, healthy, *gone]


def _past(chance: random.Random) -> dict[str, object]:
    kind = chance.choice(list(MINUTES))
    took = timedelta(minutes=chance.uniform(*MINUTES[kind]))
    ended = datetime.now(UTC) - timedelta(minutes=chance.uniform(5, 2_900))
    times = {"created_at": ended - took - timedelta(seconds=30), "started_at": ended - took, "updated_at": ended}
    row = {"job_type": kind, "queue": QUEUES.get(kind, "default"), "status": "completed", "attempt": 1}
    return {**row, **times, "completed_at": ended, "success": True}


def act(page: Page, console: Console, jobs: Sequence[int]) -> dict[str, str]:
    """Do what an administrator does, and return the pages that show it."""
    stuck, healthy, *gone = jobs
    for job in gone[:2]:
        page.goto(console.at(f"/jobs/main/{job}"))
        page.get_by_label("Why (for the audit log)").fill("worker-4 was switched off")
        page.get_by_role("button", name="Recover this job").click()
    recovered = here(page, console)
    page.get_by_role("button", name="Undo", exact=True).click()
    undone = here(page, console)
    page.goto(console.at(f"/jobs/main/{gone[2]}"))
    page.get_by_label("Why", exact=True).fill("the disk is being replaced")
    page.get_by_role("button", name="Snooze").click()
    snoozed = here(page, console)
    page.goto(console.at("/stuck?kind=report.*"))
    plan_of(page)
    page.get_by_role("button", name="Recover 1 job").click()
    result = here(page, console)
    page.goto(console.at("/stuck"))
    plan_of(page)
    pages = {"recovered": recovered, "undo-result": undone, "snoozed": snoozed, "result": result}
    return {**pages, "preview": here(page, console), "stuck-job": f"/jobs/main/{stuck}", "job": f"/jobs/main/{healthy}"}


def plan_of(page: Page) -> None:
    page.get_by_role("button", name="Preview for all of them…").click()


def here(page: Page, console: Console) -> str:
    return page.url.removeprefix(console.at(""))


def pull_the_brake(console: Console) -> None:
    async def pull() -> None:
        async with open_watched(console.settings, "main") as watched:
            assert watched.brakes is not None
            cause = Phrase("host %(host)s is gone: it had %(n)s of %(of)s of them", host="worker-9", n=60, of=61)
            at = await watched.source.clock()
            await watched.brakes.pull(Brake(source="main", at=at, suspects=61, still_open=70, cause=cause))

    run(pull())


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Takes pictures of a console's pages into a directory."""

    browser: Browser
    directory: Path
    only: str | None

    def take(self, console: Console, pages: Mapping[str, str], role: Role | None = Role.ADMIN) -> None:
        """Take every page in each language, theme and size; `role` is whose eyes it is seen with, None for nobody's."""
        for language in LANGUAGES:
            with self._somebody(console, language, role) as person:
                for name, path in pages.items():
                    self._take(person.page, console.at(path), f"{name}-{language}")

    @contextmanager
    def _somebody(self, console: Console, language: str, role: Role | None) -> Iterator[Person]:
        with a_person(self.browser, console, role=role or Role.VIEWER, locale=language) as person:
            if role is None:
                person.context.set_extra_http_headers({})
            yield person
            person.complaints.clear()  # a browser complains of every page that is an answer to an error

    def take_refused_sign_in(self, console: Console) -> None:
        """Take what somebody is shown who signs in too often with a wrong password."""
        for language in LANGUAGES:
            if not self._wants(f"problem-429-{language}"):
                continue
            with self._somebody(console, language, None) as person:
                person.page.goto(console.at("/sign-in"))
                for _ in range(FREE + 2):
                    person.page.locator("[name=name]").fill("ada")
                    person.page.locator("[name=password]").fill("a guess")
                    person.page.locator("[name=password]").press("Enter")
                    person.page.wait_for_load_state()
                self._shoot(person.page, f"problem-429-{language}")

    def _take(self, page: Page, address: str, name: str) -> None:
        if not self._wants(name):
            return
        page.goto(address, wait_until="load")
        self._shoot(page, name)

    def _wants(self, name: str) -> bool:
        return self.only is None or self.only in name

    def _shoot(self, page: Page, name: str) -> None:
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            for theme in THEMES:
                page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
                page.screenshot(path=self.directory / f"{name}-{size}-{theme}.png", full_page=True)


def take(directory: Path, only: str | None) -> None:
    with tempfile.TemporaryDirectory() as home, running_browser() as browser:
        camera = Camera(browser=browser, directory=directory, only=only)
        jobs = Database("sqlite", f"sqlite+aiosqlite:///{home}/jobs.db", "sqlite")
        with running_console(jobs, policy=POLICY) as console:
            camera.take(console, {"overview-clear": "/", "stuck-none": "/stuck", "sweeps-none": "/sweeps"})
            camera.take(console, {"audit-none": "/audit", "replay-none": "/replay", "tokens-none": "/tokens"})
            ids = fill(console)
            with a_person(browser, console) as ada:
                pages = act(ada.page, console, ids)
            pages |= {"overview": "/", "stuck": "/stuck", "stuck-filtered": "/stuck?reason=silent&text=worker"}
            pages |= {name: f"/{name}" for name in ("sweeps", "audit", "policy", "replay", "sources", "sessions")}
            camera.take(console, pages | {"no-match": "/stuck?kind=none", "problem-404": "/jobs/main/77777"})
            camera.take(console, {"problem-403": "/tokens", "viewer-job": pages["stuck-job"]}, Role.VIEWER)
            camera.take(console, {"sign-in": "/sign-in", "sign-in-link": "/sign-in/link?key=1"}, None)
            pull_the_brake(console)
            camera.take(console, {"brake": "/", "brake-source": "/sources"})
            camera.take_refused_sign_in(console)
        both = {"main": {"url": jobs.url}, "reports": {"url": AWAY}}
        with running_console(jobs, sources=both, policy=POLICY) as console:
            camera.take(console, {"away": "/", "away-source": "/sources", "problem-503": "/stuck?source=reports"})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("screenshots"))
    parser.add_argument("--only", metavar="PART", help="take only pages with this in their name")
    chosen = parser.parse_args()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    take(chosen.directory, chosen.only)
    print(f"The pictures are in {chosen.directory}.")  # noqa: T201


if __name__ == "__main__":
    main()

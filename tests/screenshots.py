"""`python -m tests.screenshots`: a picture of every page, in both themes and at both widths, to look at."""

from __future__ import annotations

import argparse
import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.consoles import DESK, PHONE, Console, a_person, running_browser, running_console
from tests.servers import Database
from unstick.sql import tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from playwright.sync_api import Page

MINUTES = {"essay.write": (1, 9), "thesis.plan": (10, 55), "slides.render": (0.2, 2), "report.monthly": (4, 20)}
QUEUES = {"thesis.plan": "slow", "report.monthly": "reports"}
POLICY = {
    "rules": [
        {"kind": "thesis.*", "running_after": "2h", "action": "retry"},
        {"kind": "report.*", "queued_after": "15m"},
    ]
}


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


def act(page: Page, console: Console, gone: Sequence[int]) -> dict[str, str]:
    """Do what an administrator does, and return the pages that show it."""
    for job in gone[:2]:
        page.goto(console.at(f"/jobs/main/{job}"))
        page.get_by_label("Why (for the audit log)").fill("worker-4 was switched off")
        page.get_by_role("button", name="Recover this job").click()
    page.get_by_role("button", name="Undo", exact=True).click()
    operation = page.url.removeprefix(console.at(""))
    page.goto(console.at("/stuck"))
    page.get_by_role("button", name="Preview for all of them…").click()
    return {"operation": operation, "plan": page.url.removeprefix(console.at(""))}


def take(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as home, running_browser() as browser:
        database = Database("sqlite", f"sqlite+aiosqlite:///{home}/jobs.db", "sqlite")
        with running_console(database, policy=POLICY) as console, a_person(browser, console) as ada:
            page = ada.page
            stuck, healthy, *gone = fill(console)
            pages = {
                "overview": "/",
                "stuck": "/stuck",
                "job": f"/jobs/main/{stuck}",
                "healthy": f"/jobs/main/{healthy}",
            }
            pages |= act(page, console, gone) | {"recovered": f"/jobs/main/{gone[0]}"}
            pages |= {name: f"/{name}" for name in ("sweeps", "audit", "policy", "replay", "sources")}
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
                for width, size in (("desk", DESK), ("phone", PHONE)):
                    page.set_viewport_size({"width": size[0], "height": size[1]})
                    for name, path in pages.items():
                        page.goto(console.at(path), wait_until="load")
                        page.screenshot(path=directory / f"{name}-{width}-{theme}.png", full_page=width == "phone")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("screenshots"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    take(directory)
    print(f"The pictures are in {directory}.")  # noqa: T201


if __name__ == "__main__":
    main()

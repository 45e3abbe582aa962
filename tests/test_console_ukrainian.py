"""Whoever reads the console in Ukrainian reads no sentence in English: every page, in every state that jobs come to."""

from __future__ import annotations

import os
import re
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from tests.consoles import SECRET
from unstick.api.auth import mint_token, read_bearer
from unstick.config import AuthSettings, Settings
from unstick.console.language import words_of
from unstick.console.router import console_router
from unstick.console.saying import said
from unstick.console.session import SignIn
from unstick.domain.access import Role
from unstick.domain.brake import Brake, likely_cause
from unstick.domain.job import Job, JobState
from unstick.domain.schedule import Timetable
from unstick.domain.wording import Phrase, keep_phrase, read_phrase
from unstick.sql import tables
from unstick.sql.engine import open_engine
from unstick.wiring import open_watched, upgrade_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.pipeline.watched import OpenWatched, Watched

UNKNOWN_PLAN = "0" * 32
FORM = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}
OURS_IN_LATIN = frozenset(
    {"Unstick", "UTC", "CSV", "JSON", "API", "English", "main", "watched", "thesis", socket.gethostname()}
)
"""Names and short forms, and what this test calls things: all other data of its own is written in Ukrainian."""
AS_DATA = frozenset({"code", "pre", "script", "style", "datalist", "option-value"})
"""What is shown in these is code or data."""


class Reader(HTMLParser):
    """Reads what a person reads or hears of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self._open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        foreign = given.get("lang") not in (None, "uk")
        silent = tag in AS_DATA or foreign or bool({"id", "mono"} & set((given.get("class") or "").split()))
        if tag not in VOID:
            self._open.append((tag, silent))
        self.said += [
            given[name] or "" for name in ("title", "aria-label", "placeholder", "data-news") if name in given
        ]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(silent for _, silent in self._open):
            self.said.append(data)


HEARD = ("title", "aria-label", "placeholder", "data-news")
VOID = frozenset({"meta", "link", "input", "img", "hr", "br"})


def foreign_words(page: str) -> list[str]:
    """Return the texts of a page with Latin words in them that are neither names nor data."""
    reader = Reader()
    reader.feed(page)
    return [each.strip() for each in reader.said if set(re.findall(r"[A-Za-z]{2,}", each)) - OURS_IN_LATIN]


@pytest.fixture
async def settings(sqlite_database: Database) -> Settings:
    """Two sources of one table: the one judges by age, the other asks witnesses."""
    url = sqlite_database.url
    watched = {"url": url, "process": {}, "progress": {}}
    settings = Settings.model_validate(
        {
            "secret_key": SECRET,
            "sources": {"main": {"url": url}, "watched": watched},
            "policy": {"hung_after": "20m", "rules": [{"kind": "вірш", "action": "retry"}]},
        }
    )
    await upgrade_database(settings)
    return settings


@pytest.fixture
async def reader(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Return an administrator's browser that asks for Ukrainian, on a service whose watch nobody keeps."""
    async with (
        open_watched(settings, "main") as main,
        open_watched(settings, "watched") as watched,
        browser_on({"main": partial(at_once, main), "watched": partial(at_once, watched)}) as reader,
    ):
        yield reader


@asynccontextmanager
async def at_once(watched: Watched) -> AsyncIterator[Watched]:
    yield watched


def browser_on(opened: dict[str, OpenWatched]) -> httpx.AsyncClient:
    sign_in = SignIn(opened=opened["main"], read=read_bearer(SECRET, AuthSettings(), opened["main"]))
    app = FastAPI()
    app.include_router(console_router(watched=opened, principal=sign_in, timetable=Timetable()))
    headers = {"Accept-Language": "uk", "Authorization": f"Bearer {token_of(Role.ADMIN)}", **FORM}
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://unstick.test", headers=headers)


def token_of(role: Role) -> str:
    return mint_token(SECRET, role=role, subject="ада", lifetime=timedelta(hours=1), auth=AuthSettings())


def row(status: str, minutes: float, **values: object) -> dict[str, object]:
    at = datetime.now(UTC) - timedelta(minutes=minutes)
    started = {"started_at": at, "updated_at": at} if status != "queued" else {}
    ended = {"completed_at": at} if status in ("completed", "failed", "cancelled") else {}
    return {"job_type": "твір", "queue": "повільна", "status": status, "created_at": at, **started, **ended, **values}


async def fill(settings: Settings) -> list[int]:
    """Add jobs in every state, and return their ids."""
    here = socket.gethostname()
    rows = [
        row("running", 45),
        row("running", 46, worker="хост:6174:ж", attempt=1, progress=60),
        row("running", 47, worker="мертвий:12:ж"),
        row("running", 48, worker=f"{here}:{os.getpid()}:ж"),
        row("running", 49, worker=f"{here}:4194303:ж"),
        row("running", 2),
        row("queued", 1),
        row("queued", 90),
        row("queued", 95, job_type="вірш"),
        row("queued", -5),
        row("completed", 3),
        row("failed", 3, error="помилка"),
        row("cancelled", 3),
        row("щось", 3),
    ]
    dead = datetime.now(UTC) - timedelta(minutes=30)
    lease = {"id": "мертвий:12:ж", "host": "мертвий", "pid": 12, "began_at": dead, "beat_at": dead, "expires_at": dead}
    engine = open_engine(settings.sources["main"].url.get_secret_value())
    add = sa.insert(tables.jobs).returning(tables.jobs.c.id)
    async with engine.begin() as connection:
        ids = [(await connection.execute(add, each)).scalar_one() for each in rows]
        await connection.execute(sa.insert(tables.leases), lease)
    await engine.dispose()
    return ids


async def pull_brakes(settings: Settings) -> None:
    running = [
        Job(id=n, state=JobState.RUNNING, status="running", started_at=datetime(2026, 1, 1, tzinfo=UTC)) for n in (1, 2)
    ]
    async with open_watched(settings) as watched:
        assert watched.brakes is not None
        at, cause = await watched.source.clock(), likely_cause(running, others_live=False)
        await watched.brakes.pull(Brake(source="main", at=at, suspects=61, still_open=70, cause=cause))


@dataclass
class Look:
    """Somebody who looks at pages and presses buttons, and what they read that is no Ukrainian."""

    browser: httpx.AsyncClient
    found: dict[str, list[str]] = field(default_factory=dict)

    async def at(self, path: str, status: int = 200) -> None:
        answer = await self.browser.get(f"/console{path}")
        assert answer.status_code == status, (path, answer.text[-1200:])
        self._read(path, answer)

    async def press(self, path: str, **form: str) -> str:
        """Send a form, and return where a browser goes on to."""
        answer = await self.browser.post(f"/console{path}", content=urlencode(form))
        self._read(f"{path} {form}", answer)
        return str(answer.headers.get("location", "")).removeprefix("/console")

    def _read(self, what: str, answer: httpx.Response) -> None:
        if words := foreign_words(answer.text):
            self.found[what] = words


async def test_no_page_has_an_english_sentence(settings: Settings, reader: httpx.AsyncClient) -> None:
    jobs, look = await fill(settings), Look(reader)
    await pull_brakes(settings)
    for source in ("main", "watched"):
        for name in ("stuck", "sweeps", "audit", "policy", "replay"):
            await look.at(f"/{name}?source={source}")
        for job in jobs if source == "main" else jobs[2:5]:
            await look.at(f"/jobs/{source}/{job}")
    plan = await look.press("/plans/main")
    await look.at(plan)
    operation = await look.press(f"{plan}/apply")
    await look.at(operation)
    await look.at(plan)
    await look.at(await look.press(f"{operation}/undo", reason="рано"))
    await look.at(await look.press(f"/recover/main/{jobs[1]}", action="mark_failed", reason="зник"))
    await look.at(await look.press(f"/snooze/watched/{jobs[4]}", minutes="60", reason="ремонт"))
    for path in ("/", "/sources", "/tokens", "/sessions", "/sign-in", "/sign-in/link", "/stuck?kind=жоден"):
        await look.at(path)
    for path in ("/audit?all=true", "/sweeps", f"/jobs/main/{jobs[1]}", f"/jobs/watched/{jobs[4]}"):
        await look.at(path)
    assert look.found == {}


async def test_what_is_refused_is_refused_in_ukrainian(settings: Settings, reader: httpx.AsyncClient) -> None:
    jobs, look = await fill(settings), Look(reader)
    for path in ("/jobs/main/77", "/operations/main/77", f"/plans/main/{UNKNOWN_PLAN}", "/stuck?source=x"):
        await look.at(path, 404)
    await look.at("/stuck?reason=held", 422)
    plan = await look.press("/plans/main")
    operation = await look.press(f"{plan}/apply")
    await look.press(f"{plan}/apply")
    for _ in range(2):
        await look.press(f"{operation}/undo")
    for job in jobs[3:5]:
        await look.press(f"/recover/watched/{job}", action="mark_failed")
        await look.press(f"/undo/watched/{job}")
    await look.press("/tokens", name="", role="boss", days="1")
    await look.press("/tokens/абв/revoke")
    await look.press("/sessions/абв/revoke")
    await look.press("/sources/main/release-brake")
    await look.at("/audit")
    reader.headers["Authorization"] = f"Bearer {token_of(Role.VIEWER)}"
    await look.at("/tokens", 403)
    await look.at(f"/jobs/main/{jobs[0]}")
    assert look.found == {}


def test_a_phrase_is_kept_with_its_facts_and_older_text_as_it_was() -> None:
    at = datetime(2026, 11, 24, 12, tzinfo=UTC)
    phrase = Phrase(
        "%(worker)s began at %(at)s, after the job: it is another one",
        worker=Phrase("worker %(worker)s", worker="7"),
        at=at,
    )
    read = read_phrase(keep_phrase(phrase))
    assert read == phrase == "worker 7 began at 2026-11-24 12:00:00 UTC, after the job: it is another one"
    assert said(words_of("uk"), read) == said(words_of("uk"), phrase)
    for older in ("an outage", "[1]", "{", '{"text": "%(gone)s", "facts": {}}'):
        assert read_phrase(older) == older
    assert said(words_of("uk"), Phrase("<b>%(n)s", n="<i>")) == "&lt;b&gt;&lt;i&gt;"

"""The service with its console over a real database, and a browser that looks at it as a person would."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import sqlalchemy as sa
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from pydantic import SecretStr

from unstick.api.auth import mint_token
from unstick.config import AuthSettings, Settings
from unstick.domain.access import Role
from unstick.sql import tables
from unstick.sql.engine import open_engine
from unstick.wiring import create_service, upgrade_database

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from tests.servers import Database

SECRET = SecretStr("a secret that is long enough for HS512 as well: sixty-four bytes or more")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PHONE, DESK = (390, 844), (1280, 900)


_Result = TypeVar("_Result")


def run(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine beside the browser, whose own loop takes up this thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


@dataclass(kw_only=True)
class Console:
    """A running service, and the hands of the application whose jobs it watches."""

    url: str
    database_url: str
    settings: Settings

    def at(self, path: str = "/") -> str:
        return f"{self.url}/console{path}"

    def add(self, status: str, minutes: float, **values: Any) -> int:  # noqa: ANN401
        """Add a job whose last sign of life is that old, and return its id."""
        at = datetime.now(UTC) - timedelta(minutes=minutes)
        started = {"started_at": at, "updated_at": at} if status != "queued" else {}
        row = {"job_type": "essay.write", "status": status, "created_at": at - timedelta(minutes=1), **started}
        return int(self.run(sa.insert(tables.jobs).values(row | values).returning(tables.jobs.c.id)).scalar_one())

    def update(self, job_id: int, **values: Any) -> None:  # noqa: ANN401
        self.run(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(values))

    def status(self, job_id: int) -> str:
        return str(self.run(sa.select(tables.jobs.c.status).where(tables.jobs.c.id == job_id)).scalar_one())

    def run(self, statement: sa.Executable) -> Any:  # noqa: ANN401
        async def once() -> Any:  # noqa: ANN401
            engine = open_engine(self.database_url)
            try:
                async with engine.begin() as connection:
                    result = await connection.execute(statement)
                    return result if not result.returns_rows else result.freeze()()
            finally:
                await engine.dispose()

        return run(once())

    def token(self, role: Role, name: str) -> str:
        return mint_token(SECRET, role=role, subject=name, lifetime=timedelta(hours=1), auth=AuthSettings())


@contextmanager
def running_console(database: Database, **sections: Any) -> Iterator[Console]:  # noqa: ANN401
    """Run the service over a database of its own, as `unstick serve` does."""
    settings = Settings.model_validate(
        {
            "secret_key": SECRET,
            "sources": {"main": {"url": database.url}},
            "sweep": {"clean_every": "1h"},
            **sections,
        }
    )
    run(upgrade_database(settings))
    service = create_service(settings)
    service.state.stopping = False
    server = uvicorn.Server(uvicorn.Config(service, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("The service did not start.")
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        console = Console(url=f"http://127.0.0.1:{port}", database_url=database.url, settings=settings)
        kept = sa.and_(tables.watches.c.observed_at.is_not(None), tables.watches.c.swept_at.is_not(None))
        while console.run(sa.select(tables.watches.c.source).where(kept)).first() is None:
            thread.join(0.05)  # the first round of the watch, after which it is kept
        yield console
    finally:
        service.state.stopping = True
        server.should_exit = True
        thread.join()


@contextmanager
def running_browser(*flags: str) -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("NOT TESTED IN A BROWSER: install Debian's chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()


@dataclass(kw_only=True)
class Person:
    """Somebody at a browser of their own; what the browser refused or complained of is kept."""

    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)


@contextmanager
def a_person(
    browser: Browser,
    console: Console,
    *,
    role: Role = Role.ADMIN,
    name: str = "ada",
    size: tuple[int, int] = DESK,
    **options: Any,  # noqa: ANN401
) -> Iterator[Person]:
    """Sit somebody down at a browser; what breaks the page's policy, or fails in it, fails the test."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        extra_http_headers={"Authorization": f"Bearer {console.token(role, name)}"},
        reduced_motion="reduce",  # what is half way from light to dark has the contrast of neither
        **{"locale": "en-GB", "timezone_id": "Europe/Kyiv", **options},
    )
    person = Person(page=context.new_page(), context=context)
    person.page.on("console", lambda said: person.complaints.append(said.text) if said.type == "error" else None)
    person.page.on("pageerror", lambda error: person.complaints.append(str(error)))
    try:
        yield person
    finally:
        context.close()
    assert person.complaints == []

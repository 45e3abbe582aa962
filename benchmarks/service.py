"""The service: within this process, where what it asks of a database is timed, or as a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx
import sqlalchemy as sa
from pydantic import SecretStr

from benchmarks.measures import ROOT, environment
from unstick.api.auth import mint_token
from unstick.config import AuthSettings, load_settings
from unstick.domain.access import Role
from unstick.domain.job import JobState
from unstick.pipeline.looking import take_look
from unstick.wiring import create_service, open_watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from benchmarks.databases import Database
    from unstick.domain.job import JobId
    from unstick.pipeline.watched import Watched

API = "/api/v1/admin"
_SECRET = SecretStr("of no worth, for it signs what this machine alone reads, and lasts an hour")
_STARTS_WITHIN = 60
_spent: ContextVar[list[float] | None] = ContextVar("spent", default=None)


def bearer() -> str:
    """Return what an administrator's call bears."""
    lifetime = timedelta(hours=1)
    return f"Bearer {mint_token(_SECRET, role=Role.ADMIN, subject='bench', lifetime=lifetime, auth=AuthSettings())}"


@dataclass(kw_only=True)
class Visitor:
    """Somebody who calls the service, without a network between."""

    watched: Watched
    _client: httpx.AsyncClient

    async def oldest(self) -> JobId:
        """Return the job that has been stuck for longest."""
        look = await take_look(self.watched)
        [job] = await self.watched.source.list_suspects(look, JobState.RUNNING, limit=1, after=None)
        return job.id

    async def get(self, path: str) -> None:
        (await self._client.get(path)).raise_for_status()


@asynccontextmanager
async def visiting(database: Database) -> AsyncIterator[Visitor]:
    """Run the service with its watch meanwhile."""
    settings = load_settings(database.config).model_copy(update={"secret_key": _SECRET})
    async with AsyncExitStack() as stack:
        watched = await stack.enter_async_context(open_watched(settings))
        service = create_service(settings)
        service.state.stopping = False
        await stack.enter_async_context(service.router.lifespan_context(service))
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(service),
            base_url="http://unstick.test",
            headers={"Authorization": bearer()},
            timeout=120,
        )
        yield Visitor(watched=watched, _client=await stack.enter_async_context(client))


@contextmanager
def metered() -> Iterator[list[float]]:
    """Note the milliseconds of each statement that is run within the block."""
    spent: list[float] = []
    token = _spent.set(spent)
    try:
        yield spent
    finally:
        _spent.reset(token)


def note(milliseconds: float) -> None:
    """Note a statement that was run by other means."""
    spent = _spent.get()
    if spent is not None:
        spent.append(milliseconds)


@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def _begin(connection: sa.Connection, *_: object) -> None:
    connection.info["begun"] = time.perf_counter()


@sa.event.listens_for(sa.Engine, "after_cursor_execute")
def _end(connection: sa.Connection, *_: object) -> None:
    note((time.perf_counter() - connection.info["begun"]) * 1000)


@dataclass(kw_only=True)
class Served:
    """A process that answers, and how long it took to."""

    pid: int
    url: str
    seconds: float
    """From its start to its first answer."""

    def read(self, path: str) -> str:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": bearer()}, timeout=60).raise_for_status().text


@contextmanager
def unstick_serve(config: Path) -> Iterator[Served]:
    """Run `unstick serve` meanwhile."""
    command = [sys.executable, "-m", "unstick", "--config", str(config), "serve", "--port"]
    told = environment(UNSTICK_SECRET_KEY=_SECRET.get_secret_value())
    with serving(command, told, f"{API}/jobs/stuck") as served:
        yield served


@contextmanager
def serving(command: list[str], told: dict[str, str], first: str) -> Iterator[Served]:
    """Run a server whose command ends with its port, from its first answer to a call."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, begin = f"http://127.0.0.1:{port}", time.monotonic()
    quiet = subprocess.DEVNULL
    with subprocess.Popen([*command, str(port)], cwd=ROOT, env=told, stdout=quiet, stderr=quiet) as process:
        try:
            while not _answers(f"{url}{first}"):
                assert process.poll() is None, f"{command} ended with {process.returncode}"
                assert time.monotonic() < begin + _STARTS_WITHIN, f"{command} doesn't answer"
                time.sleep(0.01)
            yield Served(pid=process.pid, url=url, seconds=time.monotonic() - begin)
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        httpx.get(url, headers={"Authorization": bearer()}, timeout=60).raise_for_status()
    except httpx.ConnectError:
        return False
    return True

"""Real worker processes for tests, forked from one that has loaded what they need; all are gone when their test is.

Run as a program it reads orders, one JSON document a line, and answers each with one: see `Workers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from unstick.config import SourceSettings
from unstick.kit import running
from unstick.sql.engine import open_engine
from unstick.sql.mapping import JobTable
from unstick.sql.tables import jobs
from unstick.worker import Heartbeat, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from unstick.domain.work import ClaimedJob

_ROOT = Path(__file__).parent.parent
_PR_SET_PDEATHSIG = 1
_LEFT_SECONDS = 20
"""How long all processes may take to end once their test has."""


@dataclass
class Workers:
    """The processes of a test, by their numbers."""

    _orders: IO[str]
    _answers: IO[str]

    def kit(self, url: str, *kinds: str, lease: float, concurrency: int = 2) -> int:
        """Start a worker on Unstick's kit, over Unstick's own jobs table, for jobs of these kinds."""
        return int(self._ask("kit", url=url, kinds=kinds, lease=lease, concurrency=concurrency))

    def steady(self, url: str, *, kind: str) -> int:
        """Start a worker without the kit that takes one of Unstick's own jobs, and beats in its row whenever it can."""
        return int(self._ask("steady", url=url, kind=kind))

    def plain(self, file: str, table: str, *, kind: str, beats: bool = False) -> int:
        """Start a worker that takes one job of a kind by SQL of its own and is busy with it for ever."""
        return int(self._ask("plain", file=file, table=table, kind=kind, beats=beats))

    def request(self, file: str, table: str, *, kind: str) -> int:
        """Start a web process that commits a job's row, and dies before it has scheduled the job's task."""
        return int(self._ask("request", file=file, table=table, kind=kind))

    def kill(self, pid: int) -> None:
        """Kill a process by SIGKILL, and bury it."""
        assert self._ask("kill", pid=pid) == -signal.SIGKILL

    def killed(self, pid: int) -> bool:
        """Tell whether a process was ended by SIGKILL, and bury it."""
        ended = self._ask("ended", pid=pid)
        assert ended in (None, -signal.SIGKILL), f"process {pid} ended with {ended}"
        return ended is not None

    def end(self) -> None:
        """Kill all that still live, and bury them."""
        self._ask("end")

    def _ask(self, order: str, **said: object) -> Any:  # noqa: ANN401
        print(json.dumps([order, said]), file=self._orders, flush=True)
        return json.loads(self._answers.readline())


@contextmanager
def open_workers() -> Iterator[Workers]:
    """Start the process that others are forked from; when the block ends, however it does, so do all of them."""
    command = [sys.executable, "-m", "tests.workers"]
    process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Workers(process.stdin, process.stdout)
    finally:
        process.stdin.close()  # which ends it, as this process's own death would
        try:
            process.wait(_LEFT_SECONDS)
        finally:
            process.kill()  # and with it, by the kernel's hand, all that it forked
            process.wait()
            process.stdout.close()


# In the process that forks


def main() -> None:
    """Carry out orders until there are no more, and then kill whoever still lives."""
    alive: set[int] = set()
    try:
        for line in sys.stdin:
            order, said = json.loads(line)
            sys.stdout.write(f"{json.dumps(_carry_out(order, said, alive))}\n")
            sys.stdout.flush()
    finally:
        _end(alive)


def _end(alive: set[int]) -> None:
    while alive:
        pid = alive.pop()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _carry_out(order: str, said: dict[str, Any], alive: set[int]) -> int | None:
    if order == "end":
        _end(alive)
        return None
    if order not in {"kill", "ended"}:
        pid = _fork(order, said)
        alive.add(pid)
        return pid
    if order == "kill":
        os.kill(said["pid"], signal.SIGKILL)
    pid, status = os.waitpid(said["pid"], os.WNOHANG if order == "ended" else 0)
    if not pid:
        return None
    alive.remove(pid)
    return os.waitstatus_to_exitcode(status)


def _fork(task: str, said: dict[str, Any]) -> int:
    parent = os.getpid()
    if pid := os.fork():
        return pid
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        if os.getppid() == parent:
            _TASKS[task](**said)
    except BaseException:  # noqa: BLE001 - whatever it is, it ends here and not in the loop of orders
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


# Workers on Unstick's kit


async def _essay(_job: ClaimedJob, _beat: Heartbeat) -> None:
    """Take longer than the process lives."""
    await asyncio.Event().wait()


async def _wedged(_job: ClaimedJob, beat: Heartbeat) -> None:
    """Come to 40 %, and no further."""
    beat.progress(40)
    await asyncio.Event().wait()


async def _page(_job: ClaimedJob, _beat: Heartbeat) -> None:
    """Work for a while, and end."""
    await asyncio.sleep(0.2)


async def _poison(_job: ClaimedJob, _beat: Heartbeat) -> None:
    """Do what the kernel does to a process that takes all memory."""
    os.kill(os.getpid(), signal.SIGKILL)


_HANDLERS = {"essay": _essay, "wedged": _wedged, "page": _page, "poison": _poison}


def _kit(url: str, kinds: list[str], lease: float, concurrency: int) -> None:
    asyncio.run(_run(url, kinds, timedelta(seconds=lease), concurrency))


async def _run(url: str, kinds: list[str], lease: timedelta, concurrency: int) -> None:
    registry = Registry()
    for kind in kinds:
        registry.job(kind)(_HANDLERS[kind])
    own = JobTable.from_settings(SourceSettings())
    async with running(
        registry,
        url=url,
        jobs=own,
        concurrency=concurrency,
        poll=timedelta(milliseconds=50),
        beat_every=lease / 5,
        lease=lease,
    ):
        await asyncio.Event().wait()


# An application's own processes, which know nothing of Unstick


def _steady(url: str, kind: str) -> None:
    asyncio.run(_beat_for_ever(url, kind))


async def _beat_for_ever(url: str, kind: str) -> None:
    worker, now = f"steady {os.getpid()}", sa.func.current_timestamp()
    mine = sa.update(jobs).where(jobs.c.worker == worker)
    waiting = sa.select(jobs.c.id).where(jobs.c.status == "queued", jobs.c.job_type == kind).limit(1).scalar_subquery()
    claim = sa.update(jobs).where(jobs.c.id == waiting).values(status="running", worker=worker, started_at=now)
    beats = False
    while True:
        engine = open_engine(url)
        with contextlib.suppress(DBAPIError, OSError):
            while True:
                async with engine.begin() as connection:
                    done = await connection.execute(mine.values(updated_at=now) if beats else claim)
                beats = beats or bool(done.rowcount)
                await asyncio.sleep(0.1)
        await engine.dispose()
        await asyncio.sleep(0.1)


def _connect(file: str) -> sqlite3.Connection:
    return sqlite3.connect(file, isolation_level=None, timeout=20)


_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"


def _request(file: str, table: str, kind: str) -> None:
    with closing(_connect(file)) as database:
        database.execute(f"INSERT INTO {table} (job_type, status, created_at) VALUES (?, 'queued', {_NOW})", (kind,))
    os.kill(os.getpid(), signal.SIGKILL)


def _plain(file: str, table: str, kind: str, *, beats: bool) -> None:
    worker = f"{socket.gethostname()}:{os.getpid()}"
    claim = (
        f"UPDATE {table} SET status = 'running', worker = ?, started_at = {_NOW} WHERE id IN"
        f" (SELECT id FROM {table} WHERE status = 'queued' AND job_type = ? LIMIT 1)"
    )
    with closing(_connect(file)) as database:
        while not database.execute(claim, (worker, kind)).rowcount:
            time.sleep(0.02)
        while True:
            if beats:
                database.execute(f"UPDATE {table} SET updated_at = {_NOW} WHERE worker = ?", (worker,))
            time.sleep(0.1)


_TASKS: Mapping[str, Callable[..., None]] = {"kit": _kit, "steady": _steady, "request": _request, "plain": _plain}


if __name__ == "__main__":
    main()

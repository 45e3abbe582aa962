"""What is measured in a process of its own, for its memory or its place beside another; each prints JSON."""
# ruff: noqa: PLC0415 - a task loads only what it needs: its memory is measured

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import select
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from unstick.domain.work import ClaimedJob
    from unstick.worker import Heartbeat

WRITES_A_SECOND = 200


def main() -> None:
    task, *arguments = sys.argv[1:]
    print(json.dumps(TASKS[task](*arguments)), flush=True)


def sweep(config: str) -> dict[str, Any]:
    """Do what `unstick sweep` does, timed without its start-up."""
    return asyncio.run(_sweep(Path(config)))


async def _sweep(config: Path) -> dict[str, Any]:
    from unstick.config import load_settings
    from unstick.domain.recovery import Outcome
    from unstick.pipeline.sweep import SweepOrder
    from unstick.pipeline.sweep import sweep as carry_out
    from unstick.wiring import open_watched

    async with open_watched(load_settings(config)) as watched:
        before = peak_memory()
        begin = time.monotonic()
        report = await carry_out(watched, SweepOrder(actor="benchmark"))
        end = time.monotonic()
    applied = report.tally.of(outcome=Outcome.APPLIED)
    return {"jobs": applied, "begin": begin, "end": end, "memory": peak_memory(), "memory_before": before}


def orm(url: str, number: str) -> dict[str, Any]:
    """Recover jobs as a loop over ORM objects does, with an audit row each and one commit."""
    import sqlalchemy as sa
    from sqlalchemy.orm import Session

    if "+asyncmy" in url:  # of which there is no other driver here
        return asyncio.run(_orm_on_a_loop(url, int(number)))
    engine = sa.create_engine(url.replace("+aiosqlite", ""))
    with Session(engine) as session:
        said = _recover_one_by_one(session, int(number))
    engine.dispose()
    return said


async def _orm_on_a_loop(url: str, number: int) -> dict[str, Any]:
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(url)
    async with AsyncSession(engine) as session:
        said = await session.run_sync(_recover_one_by_one, number)
    await engine.dispose()
    return said


def _recover_one_by_one(session: Session, number: int) -> dict[str, Any]:
    import sqlalchemy as sa
    from sqlalchemy.orm import DeclarativeBase
    from tests.jobs import jobs_table

    from benchmarks.filling import TABLE
    from unstick.sql.tables import recoveries

    class Base(DeclarativeBase):
        __allow_unmapped__ = True

    class Job(Base):
        __table__ = jobs_table(name=TABLE)
        id: Any
        status: Any
        started_at: Any
        completed_at: Any
        success: Any
        error_message: Any

    class Recovery(Base):
        __table__ = recoveries

    session.connection()
    now = datetime.now(UTC)
    begin = time.monotonic()
    stuck = sa.select(Job).where(Job.completed_at.is_(None), Job.status == "running")
    stuck = stuck.where(Job.started_at < now - timedelta(minutes=30)).order_by(Job.id).limit(number)
    jobs = session.scalars(stuck).all()
    for job in jobs:
        said = f"Job stuck in running since {job.started_at}. Automatically cleaned up."
        before = {"status": job.status, "success": None, "error_message": None, "completed_at": None}
        session.add(
            Recovery(
                operation_id=0, source="main", job_id=str(job.id), state="running", action="mark_failed",
                reason="silent", outcome="applied", detail=said, pre_image=json.dumps(before), at=now,
            )
        )  # fmt: skip
        job.status, job.success, job.error_message, job.completed_at = "failed", False, said, now
    session.commit()
    end = time.monotonic()
    return {"jobs": len(jobs), "begin": begin, "end": end, "memory": peak_memory()}


def writer(backend: str, raw: str) -> dict[str, Any]:
    """Send signs of life of single jobs, as a host's workers do, until a line or the end comes on stdin.

    Every second one is of a job that a sweep would recover. A write's time is from its call to its commit.
    """
    from benchmarks.drivers import connected
    from benchmarks.filling import TABLE, Backend, now

    kind = next(each for each in get_args(Backend) if each == backend)
    with connected(kind, raw) as run:
        ids = f"SELECT id FROM {TABLE} WHERE completed_at IS"
        swept, others = ([row[0] for row in run(f"{ids} {word} LIMIT 100000")] for word in ("NULL", "NOT NULL"))
        print("ready", flush=True)
        sys.stdin.readline()
        change = f"UPDATE {TABLE} SET updated_at = {now(kind)} WHERE id ="
        return {"writes": _write_until_told(lambda job: run(f"{change} {job}"), {"swept": swept, "other": others})}


def _write_until_told(write: Callable[[int], object], kinds: dict[str, list[int]]) -> list[tuple[float, str, float]]:
    dice = random.Random(1)  # noqa: S311
    writes: list[tuple[float, str, float]] = []
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        due = max(due, time.monotonic() - 0.1) + 1 / WRITES_A_SECOND
        kind = ("swept", "other")[len(writes) % 2]
        job_id = dice.choice(kinds[kind])
        begin = time.monotonic()
        write(job_id)
        writes.append((begin, kind, (time.monotonic() - begin) * 1000))
    return writes


def worker(url: str) -> dict[str, Any]:
    """Run jobs on the kit until killed, and tell of each when it begins; one that is begun again ends at once."""
    asyncio.run(_work(url))
    raise RuntimeError("A worker ended by itself.")


async def _work(url: str) -> None:
    from unstick import Registry, running
    from unstick.config import SourceSettings
    from unstick.sql.mapping import JobTable

    registry = Registry()

    @registry.job("essay")
    async def essay(job: ClaimedJob, _beat: Heartbeat) -> None:
        print(json.dumps([os.getpid(), time.monotonic()]), flush=True)
        if not job.attempt:
            await asyncio.Event().wait()

    own, second = JobTable.from_settings(SourceSettings()), timedelta(seconds=1)
    async with running(registry, url=url, jobs=own, poll=second, beat_every=second, lease=3 * second):
        await asyncio.Event().wait()


def peak_memory() -> float:
    """Return this process's largest memory so far in MB: the kernel's usage figure would count its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(found.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"sweep": sweep, "orm": orm, "writer": writer, "worker": worker}


if __name__ == "__main__":
    main()

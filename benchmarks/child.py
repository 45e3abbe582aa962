"""What is measured in a process of its own, for its memory or its place beside another; each prints JSON."""
# ruff: noqa: PLC0415 - a task loads only what it needs: its memory is measured

from __future__ import annotations

import asyncio
import json
import random
import resource
import select
import sqlite3
import sys
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    from sqlalchemy.orm import DeclarativeBase, Session
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

    engine = sa.create_engine(url.replace("+aiosqlite", ""))
    with Session(engine) as session:
        session.connection()
        now = datetime.now(UTC)
        begin = time.monotonic()
        stuck = sa.select(Job).where(Job.completed_at.is_(None), Job.status == "running")
        stuck = stuck.where(Job.started_at < now - timedelta(minutes=30)).order_by(Job.id).limit(int(number))
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
    engine.dispose()
    return {"jobs": len(jobs), "begin": begin, "end": end, "memory": peak_memory()}


def writer(backend: str, raw: str) -> dict[str, Any]:
    """Send signs of life of single jobs, as a host's workers do, until a line or the end comes on stdin.

    Every second one is of a job that a sweep would recover. A write's time is from its call to its commit.
    """
    with _host(backend, raw) as (write, swept, others):
        print("ready", flush=True)
        sys.stdin.readline()
        return {"writes": _write_until_told(write, {"swept": swept, "other": others})}


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


@contextmanager
def _host(backend: str, raw: str) -> Iterator[tuple[Callable[[int], object], list[int], list[int]]]:
    """Lend a function that commits one write, and the ids of open and of finished jobs."""
    import psycopg

    from benchmarks.filling import TABLE

    queries = [f"SELECT id FROM {TABLE} WHERE completed_at IS {word} LIMIT 100000" for word in ("NULL", "NOT NULL")]
    if backend == "postgresql":
        update = f"UPDATE {TABLE} SET updated_at = now() WHERE id = %s".encode()
        with psycopg.connect(raw, autocommit=True) as host:
            swept, others = ([row[0] for row in host.execute(query.encode())] for query in queries)
            yield lambda job_id: host.execute(update, (job_id,)), swept, others
        return
    change = f"UPDATE {TABLE} SET updated_at = strftime('%Y-%m-%d %H:%M:%f000', 'now') WHERE id = ?"
    with closing(sqlite3.connect(raw, isolation_level=None, timeout=30)) as file:
        swept, others = ([row[0] for row in file.execute(query)] for query in queries)
        yield lambda job_id: file.execute(change, (job_id,)), swept, others


def peak_memory() -> float:
    """Return this process's largest memory so far in MB: the kernel's usage figure would count its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(found.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"sweep": sweep, "orm": orm, "writer": writer}


if __name__ == "__main__":
    main()

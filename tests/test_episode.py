"""One whole episode with nobody watching: real `unstick watch` processes, a leader that is killed, and who is told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from functools import partial
from textwrap import dedent
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.jobs import make_tables
from tests.test_cli_alert import SECRET, serving
from tests.test_leadership import failed, put_stuck, run_out
from tests.test_races import on_databases
from tests.test_worker import until
from unstick.sql import tables
from unstick.sql.engine import open_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from tests.test_cli_alert import Receiver


@contextmanager
def watching(number: int, directory: Path) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Start replicas of `unstick watch` as an operator would."""
    command = [sys.executable, "-m", "unstick", "watch"]
    with (directory / "watch.log").open("wb") as log:
        found = [subprocess.Popen(command, cwd=directory, stdout=log, stderr=log) for _ in range(number)]
    try:
        yield {process.pid: process for process in found}
    finally:
        for process in found:
            process.kill()
            process.wait()


async def leader_of(engine: AsyncEngine) -> tuple[int, int] | None:
    """Return the number of the process that leads, which is in its name, and its term."""
    async with engine.connect() as connection:
        row = (await connection.execute(sa.select(tables.leaders.c.holder, tables.leaders.c.term))).one_or_none()
    return None if row is None or row.holder is None else (int(row.holder.split(":")[1]), row.term)


async def led(engine: AsyncEngine, term: int) -> int:
    async def somebody() -> bool:
        found = await leader_of(engine)
        return found is not None and found[1] == term

    await until(somebody)
    found = await leader_of(engine)
    assert found is not None
    return found[0]


async def told_and_recorded(engine: AsyncEngine) -> bool:
    """Tell whether the opening was told and no courier is under way: else nobody is told before its claim runs out."""
    done, holder = tables.notifications.c.done_at, tables.couriers.c.holder
    said = sa.exists().where(done.is_not(None)) & ~sa.exists().where(done.is_(None))
    async with engine.connect() as connection:
        return bool((await connection.execute(sa.select(said & ~sa.exists().where(holder.is_not(None))))).scalar())


async def told(receiver: Receiver, number: int) -> bool:
    return len(receiver.told) >= number


@on_databases("postgres18")
async def test_when_the_leader_is_killed_recoveries_go_on_none_is_doubled_and_one_alert_opens_and_ends(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three replicas, and an episode that lasts over the death of the first leader; few jobs more are no news."""
    monkeypatch.chdir(tmp_path)
    engine = open_engine(database.url)
    await make_tables(engine, own_jobs=True)
    with serving() as receiver:
        configure(tmp_path, database, receiver.url)
        async with engine.begin() as connection:
            by_hand = {"job_type": "by_hand", "status": "queued"}
            await connection.execute(sa.insert(tables.jobs).values(by_hand))
        with watching(3, tmp_path) as processes:
            first = await led(engine, 1)
            before = await put_stuck(engine, 5)
            await until(lambda: failed(engine, before))
            await until(partial(told_and_recorded, engine))
            os.kill(first, signal.SIGKILL)
            await asyncio.to_thread(processes[first].wait)
            after = await put_stuck(engine, 5)
            await run_out(engine)  # the time that passes
            second = await led(engine, 2)
            await until(lambda: failed(engine, after))
            async with engine.begin() as connection:
                done = sa.update(tables.jobs).where(tables.jobs.c.job_type == "by_hand").values(status="completed")
                await connection.execute(done)
            await until(partial(told, receiver, 2))
            for pid, process in processes.items():
                if pid != first:
                    process.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(process.wait, 30) == 0

    async with engine.connect() as connection:
        applied = sa.select(tables.job_recoveries.c.job_id).where(tables.job_recoveries.c.outcome == "applied")
        recovered = Counter((await connection.execute(applied)).scalars())
    await engine.dispose()
    assert second != first
    assert recovered == Counter(str(job_id) for job_id in (*before, *after))
    assert receiver.changes == ["opened", "resolved"]
    assert [alert["what"] for document in receiver.told for alert in document["alerts"]] == ["never_claimed"] * 2


def configure(directory: Path, database: Database, receiver: str) -> None:
    """Write the settings of all replicas."""
    (directory / "unstick.toml").write_text(
        dedent(f"""
            [sources.main]
            url = "{database.url}"
            [sweep]
            observe_every = "0.2s"
            clean_every = "0.5s"
            [policy]
            queued_after = "0.3s"
            [[policy.rules]]
            kind = "by_hand"
            action = "leave"
            [alerts.channels.ops]
            url = "{receiver}"
            secret = "{SECRET}"
        """)
    )

"""`python -m chaos.soak`: three replicas watch one source for long, in spite of blows; nothing may grow or be missed.

One of them is only stopped now and then, never killed: it shows whether memory grows. Another is killed and started
anew, the database is killed and restarted, and jobs that get stuck are queued all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from tests.replicas import ROOT, SWEPT, acted_late, late_ends
from tests.servers import MortalPostgres

from unstick.sql import schema, tables
from unstick.sql.engine import open_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

REPLICAS = 3
LEASE_SECONDS = 3.0
LONGEST_FAULT_SECONDS = 4.0
GROWTH = 1.15
"""How much more memory the replica that is never killed may have at the end than after a quarter of the time."""
CONNECTIONS = 8
"""How many connections to the database a replica may have."""


@dataclass
class Replica:
    """One replica, started again when it was killed."""

    url: str
    said: Path
    supervisor: subprocess.Popen[str] | None = None
    pid: int = 0

    def start(self) -> None:
        self.end()
        command = [sys.executable, "-m", "tests.replicas", "1", self.url, str(self.said), str(LEASE_SECONDS)]
        self.supervisor = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.supervisor.stdout is not None:
            [self.pid] = json.loads(self.supervisor.stdout.readline())

    def end(self) -> None:
        if self.supervisor is not None and self.supervisor.stdin is not None:
            self.supervisor.stdin.close()
            self.supervisor.wait()

    def memory(self) -> int:
        """Return its resident memory in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0


@dataclass
class Soak:
    """One run, and what was measured."""

    server: MortalPostgres
    seconds: float
    dice: random.Random
    said: Path
    blows: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@/soak?host={self.server.directory}"

    async def go(self) -> list[str]:
        self.server.create("soak")
        engine = open_engine(self.url)
        await schema.upgrade(engine, schema.branches(own_jobs=True))
        replicas = [Replica(self.url, self.said) for _ in range(REPLICAS)]
        steady, mortal = replicas[0], replicas[1:]
        for replica in replicas:
            replica.start()
        began, end = time.monotonic(), time.monotonic() + self.seconds
        try:
            queueing = asyncio.create_task(self._queue(engine))
            while time.monotonic() < end:
                await self._strike(steady, mortal)
                await asyncio.sleep(self.dice.uniform(2, 6))
                self.memory.append(steady.memory())
                self.connections.append(await self._count(engine))
            queueing.cancel()
            await asyncio.gather(queueing, return_exceptions=True)
            await self._settle(engine)
            ended = time.monotonic()
        finally:
            for replica in replicas:
                replica.end()
        broken = await self._judge(engine, began, ended)
        await engine.dispose()
        return broken

    async def _strike(self, steady: Replica, mortal: Sequence[Replica]) -> None:
        blow = self.dice.choices(["stop", "kill", "kill the database"], [4, 4, 1])[0]
        self.blows[blow] += 1
        if blow == "stop":
            victim = self.dice.choice([steady, *mortal])
            os.kill(victim.pid, signal.SIGSTOP)
            await asyncio.sleep(self.dice.uniform(0.5, LONGEST_FAULT_SECONDS))
            os.kill(victim.pid, signal.SIGCONT)
        elif blow == "kill":
            victim = self.dice.choice(mortal)
            os.kill(victim.pid, signal.SIGKILL)
            await asyncio.to_thread(victim.start)
        else:
            await asyncio.to_thread(self.server.die)
            await asyncio.sleep(self.dice.uniform(0, 1))
            await asyncio.to_thread(self.server.begin)

    async def _queue(self, engine: AsyncEngine) -> None:
        while True:
            with contextlib.suppress(DBAPIError, OSError):
                async with engine.begin() as connection:
                    await connection.execute(sa.insert(tables.jobs).values(job_type="essay", status="queued"))
            await asyncio.sleep(self.dice.uniform(0, 0.4))

    async def _count(self, engine: AsyncEngine) -> int:
        query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = 'soak' AND pid <> pg_backend_pid()")
        with contextlib.suppress(DBAPIError, OSError):
            async with engine.connect() as connection:
                return int((await connection.execute(query)).scalar_one())
        return 0

    async def _settle(self, engine: AsyncEngine) -> None:
        deadline = time.monotonic() + 30
        query = sa.text("SELECT count(*) FROM jobs WHERE status = 'queued'")
        while time.monotonic() < deadline:
            with contextlib.suppress(DBAPIError, OSError):
                async with engine.connect() as connection:
                    if not (await connection.execute(query)).scalar_one():
                        return
            await asyncio.sleep(0.2)

    async def _judge(self, engine: AsyncEngine, began: float, ended: float) -> list[str]:
        told = sorted(map(json.loads, self.said.read_text().splitlines()), key=lambda each: float(each["at"]))
        async with engine.connect() as connection:
            jobs = Counter((await connection.execute(sa.select(tables.jobs.c.status))).scalars())
            done = sa.select(tables.job_recoveries).where(tables.job_recoveries.c.outcome == "applied")
            records = (await connection.execute(done)).all()
            rows = (await connection.execute(sa.select(tables.audit).order_by(tables.audit.c.id))).all()
        recovered = Counter(record.job_id for record in records)
        swept = [began, *(float(each["at"]) for each in told if each["event"] == "Swept"), ended]
        gap = max(later - earlier for earlier, later in pairwise(swept))
        allowed = LEASE_SECONDS + LONGEST_FAULT_SECONDS + 3 * SWEPT.total_seconds() + 5
        quarter, last = self.memory[len(self.memory) // 4], self.memory[-1]
        terms = [each["term"] for each in told if each["event"] == "LeadershipChanged" and each["leads"]]
        late = late_ends(rows)
        measured = {
            **self.blows, "jobs recovered": len(recovered), "sweeps": len(swept) - 2, "leaders": len(terms),
            "longest time without a sweep": f"{gap:.1f} s of at most {allowed:.1f} s",
            "memory of one replica": f"{quarter} KiB after a quarter, {last} KiB at the end",
            "connections at most": max(self.connections), "sweeps ended late by a stopped leader": len(late),
        }  # fmt: skip
        for name, value in measured.items():
            print(f"  {name:38} {value}")
        return [
            *(f"job {job_id} was recovered {number} times" for job_id, number in recovered.items() if number > 1),
            *([f"{jobs['queued']} jobs are queued at the end"] if jobs["queued"] else []),
            *(["a term was given twice"] if len(terms) != len(set(terms)) else []),
            *([f"no sweep for {gap:.1f} s"] if gap > allowed else []),
            *([f"memory grew from {quarter} to {last} KiB"] if last > GROWTH * quarter else []),
            *([f"{max(self.connections)} connections"] if max(self.connections) > CONNECTIONS * REPLICAS else []),
            *acted_late(late, records),
        ]


def main() -> int:
    """Return 0 only if nothing grew, nothing was missed and nobody swept beside another."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"soak for {given.seconds:g} s, seed {seed}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="unstick-soak-"))
    directory.chmod(0o755)
    server = MortalPostgres(directory, "postgres")
    try:
        server.make()
        server.begin()
        broken = asyncio.run(Soak(server, given.seconds, random.Random(seed), directory / "said.jsonl").go())  # noqa: S311
    finally:
        server.die()
        shutil.rmtree(directory, ignore_errors=True)
    for sentence in broken[:50]:
        print(f"BROKEN: {sentence}")
    print(f"{len(broken)} broken promises, seed {seed}")
    return 1 if broken else 0


if __name__ == "__main__":
    os.environ.pop("UNSTICK_CONFIG", None)
    sys.exit(main())

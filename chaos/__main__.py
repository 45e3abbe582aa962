"""`python -m chaos`: strike at random for a while, let everything settle, and judge what happened."""

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
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from tests.servers import MortalPostgres

from chaos.children import OWN
from chaos.history import WATCH, Facts, judge
from unstick.kit import enqueue
from unstick.sql import schema
from unstick.sql.engine import open_engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

WORKERS = ("worker", "worker", "deaf")
SWEEPERS = 3
SETTLING = 90
"""Seconds after the last blow, or the last job that came to its end since, within which another one must."""


@dataclass
class Child:
    """One process, started again whenever it ends, as any supervisor would."""

    task: str
    url: str
    said: Path
    dice: random.Random
    process: subprocess.Popen[bytes] | None = None
    stopped_until: float = 0

    def keep(self) -> None:
        if self.process is None or self.process.poll() is not None:
            skew = str(self.dice.choice((0, -7200, 86_400)))
            command = [sys.executable, "-m", "chaos.children", self.task, self.url, str(self.said), skew]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.stopped_until = 0
        if self.stopped_until and time.monotonic() >= self.stopped_until:
            self.process.send_signal(signal.SIGCONT)
            self.stopped_until = 0

    def stop(self, seconds: float) -> None:
        if self.process is not None and not self.stopped_until:
            self.process.send_signal(signal.SIGSTOP)
            self.stopped_until = time.monotonic() + seconds

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Run:
    """One run: the server, the processes, and what was done to them."""

    server: MortalPostgres
    seconds: float
    dice: random.Random
    said: Path
    blows: Counter[str] = field(default_factory=Counter)
    acknowledged: list[int] = field(default_factory=list)

    def url(self, role: str) -> str:
        return f"postgresql+psycopg://{role}@/chaos?host={self.server.directory}"

    async def prepare(self) -> AsyncEngine:
        self.server.create("chaos")
        engine = open_engine(self.url("postgres"))
        await schema.upgrade(engine, schema.branches(own_jobs=True))
        roles = [f"CREATE ROLE {role} LOGIN SUPERUSER" for role in ("worker", "sweeper")]
        with psycopg.connect(f"host={self.server.directory} user=postgres dbname=chaos", autocommit=True) as connection:
            for statement in (*roles, WATCH):
                connection.execute(statement.encode())
        return engine

    async def go(self) -> list[str]:
        engine = await self.prepare()
        workers = [Child(task, self.url("worker"), self.said, self.dice) for task in WORKERS]
        sweepers = [Child("sweeper", self.url("sweeper"), self.said, self.dice) for _ in range(SWEEPERS)]
        everybody = [*workers, *sweepers]
        try:
            enqueueing = asyncio.create_task(self._enqueue(engine))
            end = time.monotonic() + self.seconds
            while time.monotonic() < end:
                await self._breathe(everybody, self.dice.uniform(0.2, 1.2))
                await self._strike(workers, sweepers)
            enqueueing.cancel()
            await asyncio.gather(enqueueing, return_exceptions=True)
            await self._settle(engine, everybody)
            for child in everybody:
                child.kill()  # so that nothing moves while it is judged
            return await self._judge(engine)
        finally:
            for child in everybody:
                child.kill()
            await engine.dispose()

    async def _settle(self, engine: AsyncEngine, everybody: Sequence[Child]) -> None:
        """Wait until every job is over, however slow the machine is, as long as ever fewer are open."""
        fewest, deadline = sys.maxsize, 0.0
        while (left := await self._open(engine)) and (left < fewest or time.monotonic() < deadline):
            if left < fewest:
                fewest, deadline = left, time.monotonic() + SETTLING
            await self._breathe(everybody, 0.5)

    async def _breathe(self, everybody: Sequence[Child], seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for child in everybody:
                child.keep()
            await asyncio.sleep(0.05)

    async def _strike(self, workers: Sequence[Child], sweepers: Sequence[Child]) -> None:
        blow = self.dice.choices(
            ["kill a worker", "stop a worker", "kill a sweeper", "stop a sweeper", "kill the database"], [5, 5, 3, 3, 1]
        )[0]
        self.blows[blow] += 1
        match blow:
            case "kill a worker":
                self.dice.choice(workers).kill()
            case "stop a worker":
                self.dice.choice(workers).stop(self.dice.uniform(0.5, 6))
            case "kill a sweeper":
                self.dice.choice(sweepers).kill()
            case "stop a sweeper":
                self.dice.choice(sweepers).stop(self.dice.uniform(0.5, 3))
            case _:
                await asyncio.to_thread(self.server.die)
                await asyncio.sleep(self.dice.uniform(0, 1))
                await asyncio.to_thread(self.server.begin)

    async def _enqueue(self, engine: AsyncEngine) -> None:
        """Enqueue by key, each again until it is acknowledged, as a client does."""
        number = 0
        while True:
            number += 1
            kind = self.dice.choices(["thread", "loop", "poison"], [10, 10, 0.3])[0]
            rounds = self.dice.randint(5, 120)
            while True:
                with contextlib.suppress(DBAPIError, OSError):
                    async with AsyncSession(engine) as session:
                        queued = await enqueue(session, kind, str(rounds), key=f"order-{number}", jobs=OWN)
                        await session.commit()
                    self.acknowledged.append(int(queued.job_id))
                    break
                await asyncio.sleep(0.1)
            await asyncio.sleep(self.dice.uniform(0, 0.25))

    async def _open(self, engine: AsyncEngine) -> int:
        query = sa.text("SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')")
        with contextlib.suppress(DBAPIError):
            async with engine.connect() as connection:
                return int((await connection.execute(query)).scalar_one())
        return sys.maxsize

    async def _judge(self, engine: AsyncEngine) -> list[str]:
        async with engine.connect() as connection:

            async def rows(query: str) -> Sequence[sa.Row[tuple[object, ...]]]:
                return (await connection.execute(sa.text(query))).all()

            facts = Facts(
                jobs=await rows("SELECT * FROM jobs ORDER BY id"),
                history=await rows("SELECT * FROM history ORDER BY job_id, id"),
                recoveries=await rows("SELECT * FROM unstick_job_recoveries"),
                late=await rows("SELECT * FROM unstick_late_finishes"),
                acknowledged=self.acknowledged,
                accepted=[(job, worker) for job, worker in _accepted(self.said)],
            )
        verdict = judge(facts)
        for name, number in {**self.blows, "jobs acknowledged": len(self.acknowledged), **verdict.counts}.items():
            print(f"  {name:28} {number}")
        return verdict.broken


def _accepted(said: Path) -> Iterator[tuple[int, str]]:
    for line in said.read_text().splitlines() if said.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # a process killed in the middle of saying so
            job, worker = json.loads(line)
            yield int(job), str(worker)


def main() -> int:
    """Return 0 only if every promise held."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="draws the same blows again")
    said = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if said.seed is None else said.seed
    print(f"chaos for {said.seconds:g} s, seed {seed}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="unstick-chaos-"))
    directory.chmod(0o755)
    server = MortalPostgres(directory, "postgres")
    try:
        server.make()
        server.begin()
        run = Run(server, said.seconds, random.Random(seed), directory / "accepted.jsonl")  # noqa: S311
        broken = asyncio.run(run.go())
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

"""The processes that are struck: workers that run jobs, sweepers that recover them; each says what it was told."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import time_machine

from unstick.config import SourceSettings
from unstick.domain.errors import LateFinishError, UnstickError
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.mapping import JobTable
from unstick.wiring import watch, worker_on
from unstick.worker import Heartbeat, Registry, Runner, Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unstick.domain.work import ClaimedJob

OWN = JobTable.from_settings(SourceSettings())
BEAT, LEASE = timedelta(milliseconds=500), timedelta(seconds=3)
POLICY = Policy(
    action=Action.RETRY,
    retry_backoff=timedelta(milliseconds=50),
    queued_after=timedelta(hours=1),
    # What a worker let go, for nobody showed it a sign of life, is no lease's any more: age alone finds it.
    running_after=timedelta(seconds=20),
)


class Telling(Worker):
    """A worker that notes each end it was told had been written."""

    said: Path

    async def finish(self, job: ClaimedJob, results: Mapping[str, object] | None = None) -> None:
        await super().finish(job, results)
        with self.said.open("a") as file:
            print(json.dumps([job.id, job.worker]), file=file, flush=True)


def registry() -> Registry:
    """Jobs that really work, in a thread and on the loop, and one kind that kills its process."""
    handlers = Registry()

    @handlers.job("thread")
    def thread(job: ClaimedJob, beat: Heartbeat) -> None:
        for step in _work(job):
            beat.progress(step)

    @handlers.job("loop")
    async def loop(job: ClaimedJob, beat: Heartbeat) -> None:
        for step in _work(job):
            beat.progress(step)
            await asyncio.sleep(0)

    @handlers.job("poison")
    async def poison(_job: ClaimedJob, _beat: Heartbeat) -> None:
        os._exit(9)

    return handlers


def _work(job: ClaimedJob) -> Any:  # noqa: ANN401 - a generator
    """Hash for as long as the job's payload says, in small steps."""
    rounds = int(str(job.payload))
    digest = b""
    for number in range(rounds):
        digest = hashlib.pbkdf2_hmac("sha256", digest, b"unstick", 5_000)
        yield 100 * number // rounds


async def work(url: str, said: str) -> None:
    """Run jobs until killed; while the database is away, start anew."""
    Telling.said = Path(said)
    while True:
        with contextlib.suppress(UnstickError):
            async with worker_on("main", url, OWN, every=BEAT, lease=LEASE) as worker:
                worker.__class__ = Telling  # the same, but for what it notes
                await Runner(worker, registry(), concurrency=3, poll=timedelta(milliseconds=100)).run()
        await asyncio.sleep(0.2)


async def work_deaf(url: str, said: str) -> None:
    """Run jobs as a worker that never asks whether they are still its own, and writes its results all the same."""
    Telling.said = Path(said)
    while True:
        with contextlib.suppress(UnstickError):
            async with worker_on("main", url, OWN, every=BEAT, lease=LEASE) as worker:
                worker.__class__ = Telling
                await asyncio.gather(*(_one_after_another(worker) for _ in range(3)))
        await asyncio.sleep(0.2)


async def _one_after_another(worker: Worker) -> None:
    while True:
        for job in await worker.claim(kinds=["thread", "loop"]):
            await asyncio.to_thread(list, _work(job))
            with contextlib.suppress(LateFinishError):
                await worker.finish(job)
        await asyncio.sleep(0.1)


async def sweep_for_ever(url: str, _said: str) -> None:
    """Recover what is stuck, twice a second; what a dead database did to a sweep is the next one's to see."""
    engine = open_engine(url)
    watched = watch("main", OWN, EngineConnections(engine), POLICY)
    while True:
        with contextlib.suppress(UnstickError):
            await sweep(watched, SweepOrder(actor="chaos"))
        await asyncio.sleep(random.uniform(0.3, 0.7))  # noqa: S311


TASKS = {"worker": work, "deaf": work_deaf, "sweeper": sweep_for_ever}


def main() -> None:
    task, url, said, skew = sys.argv[1:]
    logging.getLogger("unstick").setLevel(logging.CRITICAL)
    # A clock that is wrong by hours: nothing may depend on it.
    with time_machine.travel(time.time() + float(skew), tick=True):
        asyncio.run(TASKS[task](url, said))


if __name__ == "__main__":
    main()

"""RQ's jobs on a real broker, written as RQ writes them, without RQ."""

from __future__ import annotations

import base64
import itertools
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from unstick.domain.job import Job, JobId, JobState
from unstick.domain.policy import Policy
from unstick.pipeline import rescue, undo
from unstick.pipeline.watched import Watched
from unstick.systems.rq.broker import Broker, open_broker, pairs, parts, text
from unstick.systems.rq.source import RqSource
from unstick.testing.memory import MemoryJobs, MemoryLedger, MemorySightings, StoredJob

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from unstick.domain.recovery import Batch, BatchResult, Outcome
    from unstick.domain.undo import Undoable, UndoBatch, UndoResult
    from unstick.testing.conformance import Ages

NAME = "rq"
WORDS = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "started",
    JobState.SUCCEEDED: "finished",
    JobState.FAILED: "failed",
    JobState.SCHEDULED: "scheduled",
    JobState.CANCELLED: "canceled",
}
STATES = {word: state for state, word in WORDS.items()}
REGISTRIES = {
    JobState.SUCCEEDED: "rq:finished:default",
    JobState.FAILED: "rq:failed:default",
    JobState.CANCELLED: "rq:canceled:default",
}
A_DAY = timedelta(days=1)


class RecordedSource(RqSource):
    """Changes jobs between an intent and its settlement, as the pipeline does it where a source can't record."""

    def __init__(self, broker: Broker, memory: MemoryJobs, sightings: MemorySightings) -> None:
        super().__init__(NAME, broker, sightings)
        source, ledger = RqSource(NAME, broker, sightings), MemoryLedger(memory)
        self._recorded = Watched(source=source, ledger=ledger, policy=Policy())

    async def recover(self, batch: Batch) -> BatchResult:
        return await rescue._recover(self._recorded, batch)

    async def undo(self, batch: UndoBatch) -> UndoResult:
        return await undo._put_back(self._recorded, batch)


@dataclass(kw_only=True)
class RqBench:
    """A `Bench` over a broker that RQ's keys are in."""

    broker: Broker
    second: Broker
    memory: MemoryJobs = field(default_factory=MemoryJobs)
    sightings: MemorySightings = field(default_factory=MemorySightings)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    executions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def source(self) -> RecordedSource:
        return RecordedSource(self.broker, self.memory, self.sightings)

    def another(self) -> RecordedSource:
        return RecordedSource(self.second, self.memory, self.sightings)

    async def add(self, state: JobState, ages: Ages, *, attempt: int = 1) -> JobId:
        job_id = f"job-{next(self.numbers):06}"
        await self.write(job_id, state, ages, attempt=attempt)
        return job_id

    async def write(self, job_id: JobId, state: JobState, ages: Ages, *, attempt: int = 1) -> None:
        now = await self.broker.clock()
        await self._leave(str(job_id))
        times = {
            "enqueued_at": ages.enqueued,
            "started_at": ages.started,
            "last_heartbeat": ages.heartbeat,
            "ended_at": ages.completed,
        }
        said = {name: written(now - age) for name, age in times.items() if age is not None}
        scheduled = ages.scheduled is not None or state is JobState.SCHEDULED
        word = "scheduled" if scheduled else WORDS[state]
        said |= {"status": word, "origin": "default", "number_of_retries": str(attempt), "data": "never read"}
        flat = [part for pair in said.items() for part in pair]
        await self.broker.ask("HSET", f"rq:job:{job_id}", *flat)
        await self.broker.ask("SADD", "rq:queues", "rq:queue:default")
        if scheduled:
            due = now - (ages.scheduled if ages.scheduled is not None else -A_DAY)
            await self.broker.ask("ZADD", "rq:scheduled:default", due.timestamp(), str(job_id))
        elif state is JobState.QUEUED:
            await self.broker.ask("RPUSH", "rq:queue:default", str(job_id))
        elif state is JobState.RUNNING:
            ran_out = int(now.timestamp()) - 1
            await self.broker.ask("ZADD", "rq:wip:default", ran_out, f"{job_id}:execution{next(self.executions)}")
        else:
            await self.broker.ask("ZADD", REGISTRIES[state], int((now + A_DAY).timestamp()), str(job_id))

    async def _leave(self, job_id: str) -> None:
        """Take a job out of wherever it is."""
        await self.broker.ask("LREM", "rq:queue:default", 0, job_id)
        for key in ("rq:scheduled:default", *REGISTRIES.values()):
            await self.broker.ask("ZREM", key, job_id)
        for member, _ in pairs(await self.broker.ask("ZRANGE", "rq:wip:default", 0, -1, "WITHSCORES")):
            if member.startswith(f"{job_id}:"):
                await self.broker.ask("ZREM", "rq:wip:default", member)
        await self.broker.ask("DEL", f"rq:job:{job_id}")

    async def get(self, job_id: JobId) -> StoredJob:
        said = dict(pairs(await self.broker.ask("HGETALL", f"rq:job:{job_id}")))
        due = text(await self.broker.ask("ZSCORE", "rq:scheduled:default", str(job_id)))
        state = STATES[said["status"]]
        scheduled_at = None if due is None else datetime.fromtimestamp(float(due), UTC)
        if scheduled_at is not None and scheduled_at <= await self.broker.clock():
            state = JobState.QUEUED
        return StoredJob(
            job=Job(
                id=job_id,
                state=state,
                status=said["status"],
                attempt=int(said["number_of_retries"]),
                enqueued_at=read(said.get("enqueued_at")),
                scheduled_at=scheduled_at,
                started_at=read(said.get("started_at")),
                heartbeat_at=read(said.get("last_heartbeat")),
                completed_at=read(said.get("ended_at")),
            ),
            success={"finished": True, "failed": False}.get(said["status"]),
            error=await self._error(job_id),
        )

    async def _error(self, job_id: JobId) -> str | None:
        for entry in parts(await self.broker.ask("XREVRANGE", f"rq:results:{job_id}", "+", "-", "COUNT", 1)):
            said = dict(pairs(parts(entry)[1]))
            return zlib.decompress(base64.b64decode(said["exc_string"])).decode()
        return None

    async def outcomes(self, job_id: JobId) -> list[Outcome]:
        return [record.outcome for record in self.memory.recoveries if record.job_id == job_id]

    async def undoable(self, job_id: JobId) -> Undoable:
        page = await MemoryLedger(self.memory).undoable(NAME, 1, job_id=job_id)
        return page.recoveries[-1]


async def open_rq_bench(address: str, stack: AsyncExitStack) -> RqBench:
    """Open a bench on an empty broker."""
    one, other = [await stack.enter_async_context(open_broker(address)) for _ in range(2)]
    return RqBench(broker=one, second=other)


def written(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read(said: str | None) -> datetime | None:
    return datetime.strptime(said, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC) if said else None

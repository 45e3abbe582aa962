"""How RQ's queues move, what is open in them, and what their newest jobs tell."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from unstick.domain.events import QueueState
from unstick.domain.job import Job, JobClass, JobState, sign_of_life
from unstick.domain.queue import Flows, QueueFlow, Workers
from unstick.domain.suspect import Look
from unstick.ports import OpenJobs, Usage
from unstick.systems.rq import keys
from unstick.systems.rq.broker import Broker, Command, number, texts
from unstick.systems.rq.kept import Kept, to_job
from unstick.systems.rq.reading import Reader, share

_CLAIMS = 200
"""How many of the newest claims of a queue are looked at."""
_HEAD = 100
"""How many jobs at the head of a queue are looked at to tell how far it has come."""


class Flowing:
    """Reads how queues move."""

    def __init__(self, broker: Broker, reader: Reader) -> None:
        self._broker = broker
        self._reader = reader

    async def flows(self, look: Look) -> Flows:
        """Tell of each queue in which anything waits whether it drains, and whether it is served.

        A list is in order, so that a queue that drains has come as far as the oldest job at its head.
        """
        queues = [queue for queue, waits in (await self._lengths()).items() if waits]
        served = await self._served(queues)
        by_queue: dict[str | None, QueueFlow] = {
            queue: flow for queue in queues if (flow := await self._flow(queue, look)) is not None
        }
        return Flows(by_queue=by_queue, unserved=frozenset(queues) - served)

    async def _lengths(self) -> dict[str, int]:
        queues = await self._reader.queues()
        return dict(zip(queues, await self._numbers([("LLEN", keys.queue(each)) for each in queues]), strict=True))

    async def _numbers(self, commands: Sequence[Command]) -> list[int]:
        return [number(answer) for answer in await self._broker.ask_all(commands)]

    async def _served(self, queues: Sequence[str]) -> frozenset[str]:
        """Return those of these queues that a living worker serves."""
        living = await self._living(queues)
        return frozenset(queue for queue in queues if living[queue])

    async def _living(self, queues: Sequence[str]) -> Mapping[str | None, int]:
        """Count the living workers of each of these queues."""
        workers = await self._broker.ask_all([("SMEMBERS", keys.workers(queue)) for queue in queues])
        asked = [(queue, key) for queue, answer in zip(queues, workers, strict=True) for key in texts(answer)]
        said = await self._broker.ask_all([("HMGET", key, "birth", "death") for _, key in asked])
        living = Counter(queue for (queue, _), answer in zip(asked, said, strict=True) if _lives(answer))
        return {queue: living[queue] for queue in queues}

    async def _flow(self, queue: str, look: Look) -> QueueFlow | None:
        claimed = [job for job in await self._claimed(queue, look.taken_at) if job.started_at and job.enqueued_at]
        if not claimed:
            return None
        head = texts(await self._broker.ask("LRANGE", keys.queue(queue), 0, _HEAD - 1))
        waiting = _readable((await self._reader.by_id(head)).values(), look.taken_at)
        recent = [job for job in claimed if job.started_at and job.started_at >= look.horizon(JobState.QUEUED)]
        reached = [since for job in waiting if (since := sign_of_life(job)) is not None]
        came_to = [job.enqueued_at for job in claimed if job.enqueued_at is not None]
        return QueueFlow(recent_claims=len(recent), reached=min(reached, default=max(came_to)))

    async def _claimed(self, queue: str, now: datetime) -> list[Job]:
        """Read jobs of a queue that were claimed lately, and that RQ still keeps."""
        ids = [*await self._newest(queue, _CLAIMS), *await self._reader.started([queue])]
        return _readable((await self._reader.by_id(ids)).values(), now)

    async def _newest(self, queue: str, most: int) -> list[str]:
        """Return the jobs of a queue that ended last."""
        over = [("ZRANGE", key, 0, most - 1, "REV") for key in (keys.finished(queue), keys.failed(queue))]
        return [job_id for answer in await self._broker.ask_all(over) for job_id in texts(answer)]

    async def open_jobs(self, now: datetime) -> OpenJobs:
        """Count what is open by what RQ itself keeps of its number, and look for the oldest of each state."""
        queues = await self._reader.queues()
        by_queue: Counter[QueueState] = Counter()
        for queue in queues:
            waits, taken, runs, due, later, deferred = await self._numbers(_counts(queue, now))
            by_queue[QueueState(queue, JobState.QUEUED)] += waits + taken + due
            by_queue[QueueState(queue, JobState.RUNNING)] += runs
            by_queue[QueueState(queue, JobState.SCHEDULED)] += later + deferred
        running = _readable(await self._reader.running(), now)
        return OpenJobs(
            by_queue={key: count for key, count in by_queue.items() if count},
            queued_since=_oldest(await self._heads(queues, now)),
            running_since=_oldest(running),
            workers=Workers(by_queue=await self._living(queues)),
        )

    async def _heads(self, queues: Sequence[str], now: datetime) -> list[Job]:
        heads = await self._broker.ask_all([("LRANGE", keys.queue(queue), 0, _HEAD - 1) for queue in queues])
        ids = [job_id for answer in heads for job_id in texts(answer)]
        return _readable((await self._reader.by_id(ids)).values(), now)

    async def classes(self, now: datetime) -> frozenset[JobClass]:
        """Tell the kinds and queues of open jobs, so far as they are read at one look."""
        queues = await self._reader.queues()
        kept = [*await self._reader.running(), *await self._reader.taken(queues)]
        for queue in queues:
            most, before = share(queues), now.timestamp()
            for pages in (
                self._reader.waiting(queue, most),
                self._reader.overdue(queue, before, most),
                self._reader.deferred(queue, most),
            ):
                async for page in pages:
                    kept += page.jobs
        return frozenset(JobClass(job.kind, job.queue) for job in _readable(kept, now))

    async def usage(self, now: datetime) -> Usage:
        """Sum up the newest jobs that are over and that RQ still keeps."""
        ids = [job_id for queue in await self._reader.queues() for job_id in await self._newest(queue, _CLAIMS)]
        jobs = _readable((await self._reader.by_id(ids)).values(), now)
        enqueued = [job.enqueued_at for job in jobs if job.enqueued_at is not None]
        ran = [job for job in jobs if job.state is JobState.SUCCEEDED]
        took = [job.completed_at - job.started_at for job in ran if job.completed_at and job.started_at]
        return Usage(
            window_jobs=len(jobs),
            window_basis=f"of each queue the {_CLAIMS} newest jobs that finished and that failed, where RQ keeps them",
            oldest_at=min(enqueued, default=None),
            newest_at=max(enqueued, default=None),
            jobs_by_state=Counter(job.state for job in jobs),
            average_duration=sum(took, timedelta()) / len(took) if took else None,
            longest_duration=max(took, default=None),
            tokens=None,
            cost=None,
        )


def _counts(queue: str, now: datetime) -> Sequence[Command]:
    at = now.timestamp()
    return (
        ("LLEN", keys.queue(queue)),
        ("LLEN", keys.intermediate(queue)),
        ("ZCARD", keys.started(queue)),
        ("ZCOUNT", keys.scheduled(queue), "-inf", at),
        ("ZCOUNT", keys.scheduled(queue), f"({at}", "+inf"),
        ("ZCARD", keys.deferred(queue)),
    )


def _lives(said: object) -> bool:
    """Tell whether a worker has told of its birth and not of its death; who is killed is forgotten after a while."""
    match said:
        case [str(), None]:
            return True
        case _:
            return False


def _readable(jobs: Iterable[Kept], now: datetime) -> list[Job]:
    found = []
    for kept in jobs:
        try:
            found.append(to_job(kept, now))
        except ValueError:
            continue  # a sweep tells of it
    return found


def _oldest(jobs: Iterable[Job]) -> datetime | None:
    return min((since for job in jobs if (since := sign_of_life(job)) is not None), default=None)

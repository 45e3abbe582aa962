"""Whether a worker still has a job, by the lease of its execution and by what the worker says of itself.

An execution's key lives by the broker's clock, and the score of its entry is by the worker's: as long as either holds,
the job is held. Known weakness: a worker that is killed alone leaves its child at work, which RQ, too, takes for dead
when the lease has run out; what such a child finishes then is found as a late finish.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobId
from unstick.domain.tenure import held_since, say_another, say_unclear
from unstick.domain.wording import Phrase
from unstick.systems.rq import keys
from unstick.systems.rq.broker import Answer, Broker, number
from unstick.systems.rq.kept import instant, read_time
from unstick.systems.rq.reading import Reader

NAME = "rq"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Execution:
    """What the broker knows of one execution."""

    ends_at: datetime
    """When its lease runs out, or ran out."""
    lives: bool
    """The broker still has its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    """What a worker says of itself."""

    born_at: datetime
    is_at_it: bool
    """It names the execution as one of its own."""


class RqExecutions:
    """The leases of RQ's executions."""

    def __init__(self, broker: Broker) -> None:
        self.name = NAME
        self._broker = broker
        self._reader = Reader(broker)

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        """Say of running jobs whether a lease on them holds; who has no execution is left out."""
        started = await self._reader.started({job.queue for job in jobs if job.queue is not None})
        executions = {job.id: started[str(job.id)] for job in jobs if str(job.id) in started}
        known = await self._executions(executions, now)
        workers = await self._workers([job for job in jobs if job.id in executions], executions)
        return {job.id: _word(job, known[job.id], workers.get(job.id), now) for job in jobs if job.id in executions}

    async def _executions(
        self, executions: Mapping[JobId, Mapping[str, str]], now: datetime
    ) -> dict[JobId, _Execution]:
        """Return of each job the execution whose lease lasts longest."""
        asked = [(job_id, each, score) for job_id, scores in executions.items() for each, score in scores.items()]
        left = await self._broker.ask_all([("PTTL", keys.execution(str(job_id), each)) for job_id, each, _ in asked])
        found: dict[JobId, _Execution] = {}
        for (job_id, _, score), answer in zip(asked, left, strict=True):
            one = _execution(score, number(answer), now)
            other = found.get(job_id)
            found[job_id] = one if other is None or one.ends_at > other.ends_at else other
        return found

    async def _workers(
        self, jobs: Sequence[Job], executions: Mapping[JobId, Mapping[str, str]]
    ) -> dict[JobId, _Worker]:
        """Return the workers of these jobs that live."""
        named = [(job.id, job.worker) for job in jobs if job.worker is not None]
        said = await self._broker.ask_all([("HMGET", keys.worker(name), "birth", "death") for _, name in named])
        is_at_it = await self._broker.ask_all(
            [
                ("SMISMEMBER", keys.worker_executions(name), *(f"{job_id}:{each}" for each in executions[job_id]))
                for job_id, name in named
            ]
        )
        return {
            job_id: _Worker(born_at=born_at, is_at_it=isinstance(among, list) and 1 in among)
            for (job_id, _), answer, among in zip(named, said, is_at_it, strict=True)
            if (born_at := _born_at(answer)) is not None
        }


def _execution(score: str, milliseconds: int, now: datetime) -> _Execution:
    by_score = instant(score)
    by_key = now + timedelta(milliseconds=max(0, milliseconds))
    lives = milliseconds != _NO_KEY
    return _Execution(ends_at=max(by_key, by_score) if lives else by_score, lives=lives)


_NO_KEY = -2
"""What the broker says is left of a key that isn't there."""


def _word(job: Job, execution: _Execution, worker: _Worker | None, now: datetime) -> Evidence:
    name, until = job.worker or Phrase("its worker"), execution.ends_at
    if execution.lives or until > now:
        return _evidence(job, Holding.HELD, Phrase("the lease of %(name)s holds until %(at)s", name=name, at=until))
    ran_out = Phrase("the lease of %(name)s ran out at %(at)s", name=name, at=until)
    if worker is None:
        return _evidence(job, Holding.RELEASED, Phrase("%(what)s, and that worker is not there any more", what=ran_out))
    holding, another = held_since(worker.born_at, job), say_another(name, worker.born_at)
    if holding is Holding.RELEASED:
        return _evidence(job, holding, Phrase("%(what)s, and %(another)s", what=ran_out, another=another))
    if holding is Holding.UNKNOWN:
        return _evidence(job, holding, say_unclear(name, worker.born_at))
    if worker.is_at_it:
        said = Phrase("%(what)s, but that worker lives and says that it is at it", what=ran_out)
        return _evidence(job, Holding.UNKNOWN, said)
    return _evidence(job, Holding.RELEASED, Phrase("%(what)s, and that worker lives and is not at it", what=ran_out))


def _evidence(job: Job, holding: Holding, value: Phrase) -> Evidence:
    return Evidence(witness=NAME, holding=holding, at=job.heartbeat_at, value=value)


def _born_at(said: Answer) -> datetime | None:
    match said:
        case [str(birth), None]:
            return read_time(birth)
        case _:
            return None

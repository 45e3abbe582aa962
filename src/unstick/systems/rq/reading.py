"""Open jobs, read from where RQ keeps them in bounded pages; nothing is changed by it.

RQ's own registries clean up as they are read: they fail or queue jobs anew. So none of them is used.
Known weakness: a worker of several queues that dies in the moment between taking a job and naming itself leaves no
trace of it but the job's own fields, which nothing lists; such a job isn't found.
"""

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from unstick.systems.rq import keys
from unstick.systems.rq.broker import Broker, Command, number, pairs, text, texts
from unstick.systems.rq.kept import FIELDS, OPEN, Kept, Place, Status, parents

PAGE = 1_000
MOST_READ = 10_000
"""How many waiting jobs are read at one look, shared out among the queues; at least a page of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One page of what is kept in one place."""

    jobs: tuple[Kept, ...]
    ends_early: bool = False
    """There is more in that place than is read at one look."""


class Reader:
    """Reads what RQ keeps."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def queues(self) -> list[str]:
        """Return the names of all queues, in order."""
        found: set[str] = set()
        cursor = "0"
        while True:
            answer = await self._broker.ask("SSCAN", keys.QUEUES, cursor, "COUNT", PAGE)
            cursor, members = _scanned(answer)
            found.update(keys.queue_name(member) for member in members)
            if cursor == "0":
                return sorted(found)

    async def started(self, queues: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return all executions of these queues by job: each with when its lease runs out."""
        found: dict[str, dict[str, str]] = {}
        for queue in sorted(set(queues)):
            start = 0
            while page := await self._scores(keys.started(queue), start):
                for member, score in page:
                    job_id, _, execution_id = member.partition(":")
                    found.setdefault(job_id, {})[execution_id] = score
                start += PAGE
        return found

    async def _scores(self, key: str, start: int) -> list[tuple[str, str]]:
        return pairs(await self._broker.ask("ZRANGE", key, start, start + PAGE - 1, "WITHSCORES"))

    async def running(self) -> tuple[Kept, ...]:
        """Return the jobs that are begun, or were about to be, whatever became of their workers."""
        executions = await self.started(await self.queues())
        found = await self._fields(list(executions))
        places = [Kept(id=each, fields=said, place=Place.STARTED) for each, said in found.items()]
        return tuple(replace(each, executions=executions[each.id]) for each in places if each.status == Status.STARTED)

    async def taken(self, queues: Sequence[str]) -> tuple[Kept, ...]:
        """Return the jobs that a worker has taken from its queue and hasn't begun."""
        executions = await self.started(queues)
        lists = await self._broker.ask_all([("LRANGE", keys.intermediate(queue), 0, PAGE - 1) for queue in queues])
        places = dict.fromkeys(executions, Place.STARTED)
        places |= {job_id: Place.INTERMEDIATE for answer in lists for job_id in texts(answer)}
        found = [
            Kept(id=job_id, fields=said, place=places[job_id], executions=executions.get(job_id, {}))
            for job_id, said in (await self._fields(list(places))).items()
            if said["status"] == Status.QUEUED
        ]
        return tuple([each for each in found if not await self._is_queued(each)])

    async def without_worker(self, jobs: Sequence[Kept]) -> list[Kept]:
        """Leave out jobs of which the broker knows that a worker is at them."""
        asked = [(job.id, keys.execution(job.id, execution)) for job in jobs for execution in job.executions]
        there = await self._broker.ask_all([("EXISTS", key) for _, key in asked])
        held = {job_id for (job_id, _), answer in zip(asked, there, strict=True) if number(answer)}
        return [job for job in jobs if job.id not in held]

    async def without_parents(self, jobs: Sequence[Kept]) -> list[Kept]:
        """Leave out jobs that wait for one that is still there."""
        asked = [(job.id, parent) for job in jobs for parent in parents(job)]
        there = await self._broker.ask_all([("EXISTS", keys.job(parent)) for _, parent in asked])
        waits = {job_id for (job_id, _), answer in zip(asked, there, strict=True) if number(answer)}
        return [job for job in jobs if parents(job) and job.id not in waits]

    async def _is_queued(self, job: Kept) -> bool:
        """Tell whether a job of which an execution is left over waits in its queue again."""
        if job.place is not Place.STARTED:
            return False
        return await self._broker.ask("LPOS", keys.queue(job.queue), job.id) is not None

    async def overdue(self, queue: str, before: float, most: int) -> AsyncIterator[Listed]:
        """Yield scheduled jobs that were due before an instant, those due first before others."""
        key = keys.scheduled(queue)
        for start in range(0, most, PAGE):
            found = pairs(
                await self._broker.ask("ZRANGEBYSCORE", key, "-inf", before, "WITHSCORES", "LIMIT", start, PAGE)
            )
            due = dict(found)
            jobs = [replace(each, due=due[each.id]) for each in await self._at(Place.SCHEDULED, list(due))]
            yield Listed(jobs=tuple(jobs), ends_early=len(found) == PAGE and start + PAGE >= most)
            if len(found) < PAGE:
                return

    async def waiting(self, queue: str, most: int) -> AsyncIterator[Listed]:
        """Yield the jobs of a queue in the order in which workers take them."""
        for start in range(0, most, PAGE):
            ids = texts(await self._broker.ask("LRANGE", keys.queue(queue), start, start + PAGE - 1))
            jobs = await self._at(Place.QUEUE, ids)
            yield Listed(jobs=tuple(jobs), ends_early=len(ids) == PAGE and start + PAGE >= most)
            if len(ids) < PAGE:
                return

    async def deferred(self, queue: str, most: int) -> AsyncIterator[Listed]:
        """Yield the jobs that wait for others."""
        for start in range(0, most, PAGE):
            ids = texts(await self._broker.ask("ZRANGE", keys.deferred(queue), start, start + PAGE - 1))
            jobs = await self._at(Place.DEFERRED, ids)
            yield Listed(jobs=tuple(jobs), ends_early=len(ids) == PAGE and start + PAGE >= most)
            if len(ids) < PAGE:
                return

    async def _at(self, place: Place, job_ids: Sequence[str]) -> list[Kept]:
        """Read the jobs of a place; who is only left over there is left out."""
        found = await self._fields(job_ids)
        jobs = [Kept(id=job_id, fields=said, place=place) for job_id, said in found.items()]
        return [job for job in jobs if job.status == OPEN[place]]

    async def by_id(self, job_ids: Sequence[str]) -> dict[str, Kept]:
        """Read jobs by their ids, in whatever state they are, each with where it is kept."""
        found = await self._fields(job_ids)
        executions = await self.started({said["origin"] for said in found.values() if "origin" in said})
        taken = await self._all(
            (("LPOS", keys.intermediate(said.get("origin", "")), key) for key, said in found.items())
        )
        due = await self._all((("ZSCORE", keys.scheduled(said.get("origin", "")), key) for key, said in found.items()))
        jobs = {
            job_id: Kept(
                id=job_id,
                fields=said,
                place=Place.INTERMEDIATE if place is not None else _PLACES.get(said["status"], Place.ELSEWHERE),
                executions=executions.get(job_id, {}),
                due=text(score) if said["status"] == Status.SCHEDULED else None,
            )
            for (job_id, said), place, score in zip(found.items(), taken, due, strict=True)
        }
        return {job_id: await self._placed(job) for job_id, job in jobs.items()}

    async def _placed(self, job: Kept) -> Kept:
        """Tell a job that waits from one that was taken by a worker of several queues, which keeps no list of them."""
        if job.place is Place.QUEUE and job.executions:
            started = replace(job, place=Place.STARTED)
            return replace(job, executions={}) if await self._is_queued(started) else started
        return job if job.place in _WITH_EXECUTIONS else replace(job, executions={})

    async def _all(self, commands: Iterable[Command]) -> list[str | int | None]:
        answers = await self._broker.ask_all(list(commands))
        return [each for each in answers if not isinstance(each, list)]

    async def _fields(self, job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return what jobs say of themselves; one that isn't there, or bears no status, is left out."""
        distinct = list(dict.fromkeys(job_ids))
        found: dict[str, dict[str, str]] = {}
        for start in range(0, len(distinct), PAGE):
            page = distinct[start : start + PAGE]
            answer = text(await self._broker.ask("EVAL_RO", _FIELDS_OF, 0, *page))
            said = zip(page, map(_said, json.loads(answer or "[]")), strict=True)
            found |= {job_id: fields for job_id, fields in said if fields.get("status")}
        return found


# One answer for many jobs: taking apart the thousands that they'd be otherwise is what a look would cost most.
_FIELDS_OF = f"""
local found = {{}}
for place, id in ipairs(ARGV) do
  local said = redis.pcall('HMGET', 'rq:job:' .. id, {", ".join(f"'{name}'" for name in FIELDS)})
  found[place] = not said.err and said or false
end
return cjson.encode(found)
"""

_PLACES: Mapping[str, Place] = {
    Status.QUEUED: Place.QUEUE,
    Status.STARTED: Place.STARTED,
    Status.SCHEDULED: Place.SCHEDULED,
    Status.DEFERRED: Place.DEFERRED,
    Status.FAILED: Place.FAILED,
}
_WITH_EXECUTIONS = (Place.STARTED, Place.INTERMEDIATE)


def _said(values: object) -> dict[str, str]:
    if not isinstance(values, list):
        return {}
    return {name: value for name, value in zip(FIELDS, values, strict=True) if isinstance(value, str) and value}


def _scanned(answer: object) -> tuple[str, list[str]]:
    match answer:
        case [str(cursor), list(members)]:
            return cursor, [each for each in members if isinstance(each, str)]
        case _:
            raise TypeError(answer)


def share(queues: Sequence[str]) -> int:
    """Return how many jobs of each of these queues are read at one look."""
    pages = MOST_READ // PAGE // max(1, len(queues))
    return max(1, pages) * PAGE

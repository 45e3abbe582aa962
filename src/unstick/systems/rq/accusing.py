"""Which of RQ's jobs are suspects at a look.

Age accuses whoever runs, and whoever waits in a queue unless its workers are suspended. Whose message is lost is found
another way: what RQ has forgotten is seen at two looks, a minute apart, before it is said to be so, for each such place
is one that jobs pass through.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from unstick.domain.job import Job, JobState, sign_of_life
from unstick.domain.sighting import Sighted
from unstick.domain.suspect import Look, Suspect, Unreadable, is_suspect
from unstick.ports import Sightings
from unstick.systems.rq.kept import Kept, Lost, Place, Status, to_job
from unstick.systems.rq.reading import Reader, share

LOST_AFTER = timedelta(minutes=1)
"""How long a job must have been seen where jobs only pass through; RQ's own workers wait as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accused:
    """A suspect, as RQ keeps it and as it is judged."""

    kept: Kept
    job: Job

    @property
    def suspect(self) -> Suspect:
        """Return it as the pipeline knows it."""
        since = sign_of_life(self.job)
        if since is None:
            raise RuntimeError(f"Job {self.job.id} is a suspect without any time.")
        return Suspect(
            self.job.id, self.job.state, since, self.kept.fence, attempt=self.job.attempt, lost=self.job.lost
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Who is a suspect, by ascending id."""

    accused: tuple[Accused, ...]
    unreadable: tuple[Unreadable, ...]
    exact: bool
    """Otherwise there are more than were read."""


class Accuser:
    """Finds suspects; what was seen at earlier looks is remembered elsewhere, for nothing is written to the broker."""

    def __init__(self, source: str, reader: Reader, sightings: Sightings) -> None:
        self._source = source
        self._reader = reader
        self._sightings = sightings

    async def find(self, look: Look) -> Found:
        """Find the suspects of a look."""
        if look.only is not None:
            kept = await self._reader.by_id([str(job_id) for job_id in look.only])
            return await self.among(list(kept.values()), look)
        running = await self._reader.running() if JobState.RUNNING in look.states else ()
        waiting, exact = await self._waiting(look) if JobState.QUEUED in look.states else ([], True)
        return replace(await self.among([*running, *waiting], look), exact=exact)

    async def among(self, jobs: Iterable[Kept], look: Look) -> Found:
        """Find those of some jobs that are suspects at a look."""
        distinct = {kept.id: kept for kept in jobs}
        lost = await self._lost(list(distinct.values()), look)
        if await self._reader.is_suspended():
            distinct = {job_id: kept for job_id, kept in distinct.items() if kept.place is not Place.QUEUE}
        judged = [_judge(kept, look, lost.get(kept.id)) for _, kept in sorted(distinct.items())]
        return Found(
            accused=tuple(each for each in judged if isinstance(each, Accused)),
            unreadable=tuple(each for each in judged if isinstance(each, Unreadable)),
            exact=True,
        )

    async def _waiting(self, look: Look) -> tuple[list[Kept], bool]:
        queues = await self._reader.queues()
        found, exact, most = list(await self._reader.taken(queues)), True, share(queues)
        before = look.horizon(JobState.QUEUED).timestamp()
        for queue in queues:
            async for page in self._reader.waiting(queue, most):
                found += page.jobs
                if not _goes_on(page.jobs, look):
                    break
                exact &= not page.ends_early
            for pages in (self._reader.overdue(queue, before, most), self._reader.deferred(queue, most)):
                async for page in pages:
                    found += page.jobs
                    exact &= not page.ends_early
        return found, exact

    async def _lost(self, jobs: Sequence[Kept], look: Look) -> dict[str, Lost]:
        """Say of whom the message is lost, and how."""
        overdue = {kept.id: Lost.OVERDUE for kept in jobs if kept.status == Status.SCHEDULED}
        taken = await self._reader.without_worker([kept for kept in jobs if _is_taken(kept)])
        orphaned = await self._reader.without_parents([kept for kept in jobs if kept.place is Place.DEFERRED])
        passing = {kept.id: Lost.TAKEN for kept in taken} | {kept.id: Lost.ORPHANED for kept in orphaned}
        seen = await self._sightings.note(self._source, [_sighted(each) for each in (*taken, *orphaned)], look.taken_at)
        long = {job_id for job_id, one in seen.items() if look.taken_at - one.first_seen_at >= LOST_AFTER}
        return overdue | {job_id: how for job_id, how in passing.items() if job_id in long}


def _is_taken(kept: Kept) -> bool:
    """Tell whether a job says that it is queued and is in no queue."""
    return kept.status == Status.QUEUED and kept.place is not Place.QUEUE


def _sighted(kept: Kept) -> Sighted:
    since = kept.fields.get("enqueued_at") or kept.fields.get("created_at", "")
    return Sighted(job_id=kept.id, attempt=f"{kept.place} {since}", progress=None)


def _judge(kept: Kept, look: Look, lost: Lost | None) -> Accused | Unreadable | None:
    if _is_taken(kept) and lost is None:
        return None  # a worker is about to begin it
    try:
        job = to_job(kept, look.taken_at, None if lost is None else lost.value)
    except ValueError as error:
        return _unreadable(kept, look, str(error))
    return Accused(kept=kept, job=job) if is_suspect(job, _look_at(look, lost)) else None


def _look_at(look: Look, lost: Lost | None) -> Look:
    """Return the look that judges a job: whose message is lost has no turn to wait for, nor, if seen twice, an age."""
    if lost is None:
        return look
    return replace(look, draining={}, queued_after=look.queued_after if lost is Lost.OVERDUE else timedelta(0))


def _unreadable(kept: Kept, look: Look, problem: str) -> Unreadable | None:
    state = JobState.RUNNING if kept.status == Status.STARTED else JobState.QUEUED
    meant = look.only is None or kept.id in look.only
    if state not in look.states or kept.id in look.left_alone or not meant:
        return None
    return Unreadable(job_id=kept.id, state=state, problem=problem)


def _goes_on(page: Sequence[Kept], look: Look) -> bool:
    """Tell whether a queue has to be read further: its list is in order, so behind the young there are only younger."""
    plain = replace(look, classes=None, left_alone=frozenset())
    return any(_judge(kept, plain, None) is not None for kept in page)

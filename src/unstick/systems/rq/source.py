"""RQ's jobs as a `JobSource`.

Guarantee: a job is changed only where it still is exactly as it was seen, no execution of it lives, and the look still
accuses it; RQ's own API, `rq info` and workers find what they would after RQ had done it.
Known weaknesses: the times in a job are of the clocks of its producer and its worker, and are judged by the broker's.
A failure callback isn't run and no webhook is sent, for both take the application's code; the place that a failed job
has under a rate limit is freed by RQ's own maintenance. RQ forgets what succeeded after `result_ttl`, 500 seconds by
default, and with it late finishes that no sweep has seen by then.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta

from unstick.domain.aftermath import Finished, Recovered
from unstick.domain.job import Job, JobId, JobState, sign_of_life
from unstick.domain.policy import Ruling
from unstick.domain.queue import Flows
from unstick.domain.recovery import Action, Batch, BatchResult, Decision, Intent, Ruled, Undo
from unstick.domain.story import JobRow, Waits
from unstick.domain.suspect import GroupedSuspects, Look, Mark, Page, Position, Stretch, StuckCounts, SuspectGroup
from unstick.domain.undo import Undoable, UndoBatch, UndoResult
from unstick.domain.wording import Phrase
from unstick.ports import Capabilities, OpenClasses, OpenJobs, Sightings, Usage
from unstick.systems.rq import keys
from unstick.systems.rq.accusing import Accused, Accuser
from unstick.systems.rq.broker import Broker, number, text, texts
from unstick.systems.rq.changes import (
    NOTHING_KEPT,
    Image,
    Scheduling,
    Seen,
    changed,
    forgets_failures,
    from_text,
    order,
    orders_text,
    to_text,
)
from unstick.systems.rq.ends import finished
from unstick.systems.rq.flowing import Flowing
from unstick.systems.rq.kept import Kept, Place, Status, seen_as, to_job
from unstick.systems.rq.moving import MOVE
from unstick.systems.rq.reading import Reader
from unstick.systems.rq.seeing import newest_results, see
from unstick.systems.rq.undoing import why_left, why_not

_PAGE = 100
"""Suspects a page, and so jobs a script: for as long as it runs nobody else is served."""


class RqSource:
    """The jobs that RQ keeps on one broker."""

    def __init__(self, name: str, broker: Broker, sightings: Sightings) -> None:
        self.name = name
        self.capabilities = Capabilities(
            heartbeats=True,
            attempts=True,
            mark_failed=True,
            retry=True,
            records=False,
            rulings=False,
            reads_beside_writes=True,
        )
        self._broker = broker
        self._reader = Reader(broker)
        self._accuser = Accuser(name, self._reader, sightings)
        self._flowing = Flowing(broker, self._reader)

    async def clock(self) -> datetime:
        """Return the broker's time."""
        return await self._broker.clock()

    async def up_since(self) -> datetime | None:
        """Tell since when the broker has been up."""
        told = text(await self._broker.ask("INFO", "server")) or ""
        said = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
        seconds = said.get("uptime_in_seconds")
        return None if seconds is None else await self.clock() - timedelta(seconds=int(seconds))

    async def open_classes(self, most: int | None = None) -> OpenClasses:
        """Tell the kinds and queues of open jobs, so far as they are read at one look."""
        del most
        return OpenClasses(found=await self._flowing.classes(await self.clock()))

    async def flows(self, look: Look) -> Flows:
        """Tell how the queues move in which anything waits."""
        return await self._flowing.flows(look)

    async def find(self, job_id: JobId) -> JobRow | None:
        """Return a job as it stands."""
        now = await self.clock()
        kept = (await self._reader.by_id([str(job_id)])).get(str(job_id))
        if kept is None:
            return None
        (seen,) = await see(self._broker, [kept])
        try:
            job, problem = to_job(kept, now), None
        except ValueError as error:
            job, problem = None, str(error)
        over = kept.status in (Status.FINISHED, Status.FAILED, Status.STOPPED)
        return JobRow(
            job_id=kept.id,
            read_at=now,
            status=kept.status,
            job=job,
            problem=problem,
            waits=await self._waits(kept),
            success=kept.status == Status.FINISHED if over else None,
            error=seen.error if kept.place is Place.FAILED else None,
        )

    async def count_suspects(self, look: Look) -> StuckCounts:
        """Count the suspects among the jobs that are read at one look, which are never too many."""
        found = await self._accuser.find(look)
        states = Counter(each.job.state for each in found.accused)
        return StuckCounts(queued=states[JobState.QUEUED], running=states[JobState.RUNNING], exact=found.exact)

    async def suspects_by_queue(self, look: Look) -> GroupedSuspects:
        """Count the same suspects by queue."""
        found = await self._accuser.find(look)
        groups = Counter(
            SuspectGroup(each.job.queue, each.job.state, lease_expired=False, lost=each.job.lost is not None)
            for each in found.accused
        )
        return GroupedSuspects(counts=groups, exact=found.exact)

    async def list_suspects(
        self, look: Look, state: JobState, *, limit: int, after: Position | None
    ) -> tuple[Job, ...]:
        """Return a state's suspects, oldest first."""
        return await self._listed(look, state, limit, after)

    async def _listed(
        self, look: Look, state: JobState, limit: int, after: Position | None, *, newest_first: bool = False
    ) -> tuple[Job, ...]:
        accused = (await self._accuser.find(look)).accused
        jobs = sorted((each.job for each in accused), key=_by_age, reverse=newest_first)
        wanted = [job for job in jobs if job.state is state and _is_past(job, after, newest_first=newest_first)]
        return tuple(wanted[:limit])

    async def stretch(
        self, look: Look, state: JobState, *, size: int, after: Mark | None = None, newest_first: bool = False
    ) -> Stretch:
        """Return a state's suspects by their signs of life, after a mark."""
        position = None if after is None else after.position
        jobs = await self._listed(look, state, size, position, newest_first=newest_first)
        return Stretch.by_age(jobs, size)

    async def describe(self, look: Look, job_ids: Sequence[JobId]) -> Mapping[JobId, Job]:
        """Read jobs by their ids."""
        found: dict[JobId, Job] = {}
        for job_id, kept in (await self._reader.by_id([str(each) for each in job_ids])).items():
            try:
                found[job_id] = to_job(kept, look.taken_at)
            except ValueError:
                continue
        return found

    async def suspects(self, look: Look) -> AsyncIterator[Page]:
        """Yield the suspects by ascending id."""
        found = await self._accuser.find(look)
        for start in range(0, len(found.accused), _PAGE):
            yield Page(suspects=tuple(each.suspect for each in found.accused[start : start + _PAGE]))
        if found.unreadable:
            yield Page(suspects=(), unreadable=found.unreadable)

    async def intend(self, batch: Batch) -> Sequence[Intent]:
        """Tell what carrying out a batch would do."""
        at = batch.at or await self.clock()
        changes = await self._changes(batch, at)
        return [
            Intent(
                job_id=seen.kept.id,
                state=decision.suspect.state,
                action=decision.action,
                reason=decision.reason,
                detail=decision.sentence,
                pre_image=to_text(seen.image),
                post_image=to_text(then),
            )
            for decision, seen, then in changes
        ]

    async def recover(self, batch: Batch) -> BatchResult:
        """Carry out a batch, all of it in one script."""
        at = batch.at or await self.clock()
        changes = await self._changes(batch, at)
        refused: dict[JobId, str] = {
            seen.kept.id: NOTHING_KEPT for _, seen, then in changes if _is_refused(seen.kept, then)
        }
        tried = [(seen, then) for _, seen, then in changes if seen.kept.id not in refused]
        said = await self._move([order(seen.kept, seen.image, then, at) for seen, then in tried])
        moved = {seen.kept.id: seen for (seen, _), word in zip(tried, said, strict=True) if word == "moved"}
        pre_images: dict[JobId, str] = {job_id: to_text(seen.image) for job_id, seen in moved.items()}
        return BatchResult(applied=frozenset(moved), refused=refused, pre_images=pre_images)

    async def recover_by_rule(self, ruling: Ruling, look: Look, operation_id: int) -> AsyncIterator[Ruled]:
        """Not here: every decision is made one by one."""
        raise NotImplementedError(f"{self.name} has no rulings: {ruling}, {look}, operation {operation_id}")
        yield Ruled(recovered=0, left=True)

    async def images(self, intents: Sequence[Intent]) -> Mapping[JobId, str]:
        """Return what stands now where these intents would write; who waited for a job is told as it was then."""
        found = await self._reader.by_id([str(each.job_id) for each in intents])
        seen = {each.kept.id: each for each in await see(self._broker, list(found.values()))}
        waited = {str(each.job_id): from_text(each.pre_image)["dependents"] for each in intents}
        return {job_id: to_text({**each.image, "dependents": waited[job_id]}) for job_id, each in seen.items()}

    async def undo(self, batch: UndoBatch) -> UndoResult:
        """Put jobs back where they are as they were left."""
        undoing, lost = await self._undoing(batch)
        at = await self.clock()
        orders = [order(kept, was, then, at, undoing=True) for kept, _, was, then in undoing]
        said = await self._move(orders)
        came_to = {each.job_id: word for (_, each, _, _), word in zip(undoing, said, strict=True)}
        left = {job_id: why_left(word) for job_id, word in came_to.items() if word != "moved"}
        applied = frozenset(job_id for job_id, word in came_to.items() if word == "moved")
        return UndoResult(applied=applied, refused={}, lost={**lost, **left})

    async def intend_undo(self, batch: UndoBatch) -> tuple[Sequence[Intent], Mapping[JobId, str]]:
        """Tell what undoing a batch would do, and why each other job would be left alone."""
        undoing, lost = await self._undoing(batch)
        intents = [
            Intent(
                job_id=each.job_id,
                state=each.state,
                action=Undo.UNDO,
                reason=each.reason,
                detail=each.detail,
                pre_image=to_text(was),
                post_image=to_text(then),
                undoes=each.recovery_id,
            )
            for _, each, was, then in undoing
        ]
        return intents, lost

    async def finished_among(self, recovered: Sequence[Recovered]) -> Sequence[Finished]:
        """Return which of these are finished now; RQ names the execution that did it."""
        now = await self.clock()
        found = await self._reader.by_id([str(each.job_id) for each in recovered])
        over = {job_id: kept for job_id, kept in found.items() if kept.status == Status.FINISHED}
        results = await newest_results(self._broker, list(over))
        told = []
        for each in recovered:
            kept = over.get(str(each.job_id))
            job = None if kept is None else _readable(kept, now)
            if job is not None:
                token = results.get(str(each.job_id), {}).get("execution_id")
                told.append(finished(each, job, token))
        return told

    async def open_jobs(self) -> OpenJobs:
        """Count the jobs that are not over by what RQ keeps of their number."""
        return await self._flowing.open_jobs(await self.clock())

    async def usage(self) -> Usage:
        """Sum up the newest jobs that RQ still keeps."""
        return await self._flowing.usage(await self.clock())

    async def _changes(self, batch: Batch, at: datetime) -> list[tuple[Decision, Seen, Image]]:
        """Return what each decision makes of its job, where that is as it was seen, and is still a suspect."""
        decisions = {str(each.suspect.job_id): each for each in batch.decisions}
        now = await self._reader.by_id(list(decisions))
        same = [kept for job_id, kept in now.items() if seen_as(kept, decisions[job_id].suspect.seen)]
        accused = (await self._accuser.among(same, batch.look)).accused
        scheduling = await self._scheduling(accused) if batch.action is Action.RETRY else Scheduling()
        return [
            (decision, seen, changed(seen, decision, decision.error_message(batch.look), at, scheduling))
            for seen in await see(self._broker, [each.kept for each in accused])
            if (decision := decisions[seen.kept.id]).action is not Action.LEAVE
        ]

    async def _waits(self, kept: Kept) -> Waits | None:
        suspended = kept.place is Place.QUEUE and await self._reader.is_suspended()
        return Waits("paused", Phrase("its workers are suspended")) if suspended else None

    async def _scheduling(self, accused: Sequence[Accused]) -> Scheduling:
        """Tell which queues have a scheduler: where there is none, nobody would bring a job into its queue later."""
        queues = sorted({each.kept.queue for each in accused})
        held = await self._broker.ask_all([("EXISTS", keys.scheduler(queue)) for queue in queues])
        return Scheduling(queues=frozenset(q for q, answer in zip(queues, held, strict=True) if number(answer)))

    async def _move(self, orders: Sequence[Mapping[str, object]]) -> list[str]:
        """Run the script."""
        return texts(await self._broker.ask("EVAL", MOVE, 0, orders_text(orders))) if orders else []

    async def _undoing(self, batch: UndoBatch) -> tuple[list[tuple[Kept, Undoable, Image, Image]], dict[JobId, str]]:
        """Return the jobs that are as recoveries left them, with both images, and why each other one isn't."""
        now = await self._reader.by_id([str(each.job_id) for each in batch.recoveries])
        seen = {each.kept.id: each for each in await see(self._broker, list(now.values()))}
        undoing, lost = [], dict[JobId, str]()
        for each in batch.recoveries:
            found = seen.get(str(each.job_id))
            why = why_not(each, found)
            if why is not None:
                lost[each.job_id] = why
            elif found is not None and each.pre_image is not None and each.post_image is not None:
                undoing.append((found.kept, each, from_text(each.post_image), from_text(each.pre_image)))
        return undoing, lost


def _is_refused(kept: Kept, then: Image) -> bool:
    return then["place"] == Place.FAILED and forgets_failures(kept)


def _by_age(job: Job) -> tuple[datetime, str]:
    since = sign_of_life(job)
    if since is None:
        raise RuntimeError(f"Job {job.id} is a suspect without any time.")
    return since, str(job.id)


def _is_past(job: Job, position: Position | None, *, newest_first: bool) -> bool:
    """Tell whether a job comes after a position in a list."""
    if position is None:
        return True
    place, begun = _by_age(job), (position.since, str(position.job_id))
    return place < begun if newest_first else place > begun


def _readable(kept: Kept, now: datetime) -> Job | None:
    try:
        return to_job(kept, now)
    except ValueError:
        return None

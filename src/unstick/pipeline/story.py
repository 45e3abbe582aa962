"""The story of one job: how it stands now, and every sign of life, recovery and order that is known, in time order.

What happened is told by readers: its row and its worker's lease here, what is on record by `Watched.story_readers`.
Whoever knows more adds a reader. Known weakness: a row tells of its last attempt only; of earlier ones, what a recovery
overwrote is in its event's data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from unstick.domain.job import Job, JobId, JobState
from unstick.domain.redaction import shown_payload
from unstick.domain.standing import Standing
from unstick.domain.story import Event, JobRow
from unstick.domain.wording import Phrase, say_worker
from unstick.pipeline.snoozing import unknown_job
from unstick.pipeline.verdict import Verdict, foretell, judge
from unstick.pipeline.watched import Watched

STORY_CALL = "jobs.story"
"""What it is called in the audit log."""
MAX_EVENTS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What is known of one job."""

    source: str
    job_id: JobId
    told_at: datetime
    verdict: Verdict | None
    """None where the job is gone and only its record is left."""
    standing: Standing
    sentence: str
    """How it stands now, in one sentence."""
    outlook: str
    """What a sweep would do to it now, in one sentence."""
    events: tuple[Event, ...]
    truncated: bool
    """There were more events: these are the newest."""


async def tell_story(watched: Watched, job_id: JobId, limit: int = MAX_EVENTS) -> Story:
    """Tell all that is known of a job, at most `limit` events.

    Raises:
        UnknownJobError: its source has no such job, and nothing is on record of one.
    """
    verdict, name = _without_secrets(watched, await judge(watched, job_id)), watched.source.name
    known_as = job_id if verdict is None else verdict.row.job_id
    parts = [await reader.events(name, known_as, limit + 1) for reader in watched.story_readers]
    if verdict is not None:
        parts += [tell(verdict.row) for tell in _OF_A_ROW]
    # What is on record comes first where two are of one instant: a recovery is what wrote the row.
    events = sorted((event for part in parts for event in part), key=lambda event: event.at)
    if verdict is None and not events:
        raise unknown_job(watched, job_id)
    return Story(
        source=name,
        job_id=known_as,
        told_at=await watched.source.clock() if verdict is None else verdict.row.read_at,
        verdict=verdict,
        standing=Standing.GONE if verdict is None else verdict.standing,
        sentence=_gone(name, known_as) if verdict is None else verdict.sentence,
        outlook=Phrase("A sweep can do nothing to it.") if verdict is None else await foretell(watched, verdict),
        events=tuple(events[-limit:]),
        truncated=len(events) > limit,
    )


def _without_secrets(watched: Watched, verdict: Verdict | None) -> Verdict | None:
    if verdict is None or not isinstance(verdict.row.payload, str):
        return verdict
    payload = shown_payload(verdict.row.payload, watched.secret_keys)
    return replace(verdict, row=replace(verdict.row, payload=payload))


def _gone(source: str, job_id: JobId) -> str:
    return Phrase(
        "Job %(job)s isn't in source %(source)s any more; this is what is on record of it.",
        job=job_id,
        source=repr(source),
    )


def row_events(row: JobRow) -> Sequence[Event]:
    """Tell what a job's own row says, time by time."""
    job, found = row.job, list[Event]()
    if job is None:
        return ()
    if job.enqueued_at is not None:
        data = {"kind": job.kind, "queue": job.queue}
        found.append(Event(at=job.enqueued_at, kind="enqueued", sentence="It was enqueued.", data=data))
    if job.scheduled_at is not None and job.scheduled_at != job.enqueued_at:
        sentence = "It is due." if job.scheduled_at > row.read_at else "It was due."
        found.append(Event(at=job.scheduled_at, kind="due", sentence=sentence))
    if job.started_at is not None:
        found.append(_started(job, job.started_at))
    if job.heartbeat_at is not None and job.heartbeat_at != job.started_at:
        progress = "" if row.progress is None else f", at progress {row.progress}"
        found.append(
            Event(
                at=job.heartbeat_at,
                kind="heartbeat",
                sentence=f"It last beat{progress}.",
                data={"progress": row.progress},
            )
        )
    if job.completed_at is not None:
        found.append(_completed(row, job, job.completed_at))
    return found


def _started(job: Job, at: datetime) -> Event:
    if job.state is JobState.QUEUED:
        return Event(at=at, kind="waiting", sentence="It was put back to wait.")
    by = "" if job.worker is None else f" by {say_worker(job.worker)}"
    data = {"worker": job.worker, "attempt": job.attempt, "max_attempts": job.max_attempts}
    return Event(at=at, kind="started", sentence=f"It was started{by}.", data=data)


def _completed(row: JobRow, job: Job, at: datetime) -> Event:
    ended = {JobState.SUCCEEDED: "It succeeded", JobState.FAILED: "It failed", JobState.CANCELLED: "It was cancelled"}
    said = ended.get(job.state, f"It ended, though it says {row.status!r}")
    error = "" if row.error is None or job.state is JobState.SUCCEEDED else f": {row.error.rstrip().rstrip('.')}"
    data = {"status": row.status, "success": row.success, "error": row.error}
    return Event(at=at, kind="completed", sentence=f"{said}{error}.", data=data)


def lease_events(row: JobRow) -> Sequence[Event]:
    """Tell what the worker that has the job said of itself."""
    if row.lease is None:
        return ()
    lease, name = row.lease, say_worker(row.lease.worker)
    end = f"The lease of {name} runs out." if lease.holds(row.read_at) else f"The lease of {name} ran out."
    data = {"worker": lease.worker}
    return (
        Event(at=lease.began_at, kind="worker_began", sentence=f"Worker {name} began to work.", data=data),
        Event(at=lease.beat_at, kind="worker_beat", sentence=f"Worker {name} last beat.", data=data),
        Event(at=lease.expires_at, kind="lease_end", sentence=end, data=data),
    )


_OF_A_ROW: Sequence[Callable[[JobRow], Sequence[Event]]] = (row_events, lease_events)

"""Snoozes: a person has a job left alone for a time, and no look makes it a suspect until then.

Guarantee: a snooze and its audit entry are one transaction, and it ends by the clock that judges the job, its source's.
A sweep under way asks again before each batch that it writes: only the batch that is being written as the snooze
commits may still hold the job. Known weakness: two that snooze at once may exceed `MAX_SNOOZES` by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from unstick.domain.audit import SNOOZE_CALL, UNSNOOZE_CALL, AuditEntry, AuditOutcome
from unstick.domain.errors import InvalidRequestError, TooManySnoozesError, UnknownJobError
from unstick.domain.job import JobId
from unstick.domain.snooze import MAX_SNOOZES, Snooze, requested_reason
from unstick.domain.wording import Phrase
from unstick.pipeline.watched import Watched
from unstick.ports import Snoozes


@dataclass(frozen=True, slots=True, kw_only=True)
class SnoozeOrder:
    """Who asks for a job to be left alone, for how long and why; without a duration, to be left alone no longer."""

    actor: str
    role: str | None = None
    job_id: JobId
    reason: str | None
    lasting: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnoozeReport:
    """What became of an order; `snooze` is the one that was made, or ended, None where there was none to end."""

    job_id: JobId
    at: datetime
    snoozed: bool
    snooze: Snooze | None


async def snooze(watched: Watched, order: SnoozeOrder) -> SnoozeReport:
    """Have a job left alone from now on, or end that; the latest order wins.

    Raises:
        InvalidRequestError: there is no reason to snooze a job, or one that is too long.
        UnknownJobError: the source has no such job, and no snooze of it stands.
        TooManySnoozesError: as many jobs of the source are snoozed as may be.
    """
    reason, name = requested_reason(order.reason), watched.source.name
    if order.lasting is not None and reason is None:
        why = Phrase("Say why the job is to be left alone: whoever finds it stuck will want to know.")
        raise InvalidRequestError(why)
    row = await watched.source.find(order.job_id)
    job_id = order.job_id if row is None else row.job_id
    now = await watched.source.clock() if row is None else row.read_at
    if order.lasting is None or reason is None:
        return await _end(watched, order, job_id, reason, now, is_there=row is not None)
    if row is None:
        raise unknown_job(watched, job_id)
    made = Snooze(source=name, job_id=job_id, until=now + order.lasting, reason=reason, by=order.actor, at=now)
    entry = _entry(watched, order, SNOOZE_CALL, job_id, reason, {"until": made.until.isoformat()})
    if not await kept_snoozes(watched).keep(made, entry, most=MAX_SNOOZES):
        raise TooManySnoozesError(
            f"{MAX_SNOOZES} jobs of source {name!r} are snoozed, which is the most there may be. End a snooze first, "
            "or have a rule of the policy leave such jobs alone."
        )
    return SnoozeReport(job_id=job_id, at=now, snoozed=True, snooze=made)


async def _end(
    watched: Watched, order: SnoozeOrder, job_id: JobId, reason: str | None, now: datetime, *, is_there: bool
) -> SnoozeReport:
    snoozes, name = kept_snoozes(watched), watched.source.name
    if not is_there and await standing(watched, job_id, now) is None:
        raise unknown_job(watched, job_id)
    ended = await snoozes.strike(name, job_id, _entry(watched, order, UNSNOOZE_CALL, job_id, reason, {}))
    was_live = ended is not None and ended.until > now
    return SnoozeReport(job_id=job_id, at=now, snoozed=False, snooze=ended if was_live else None)


def _entry(
    watched: Watched, order: SnoozeOrder, call: str, job_id: JobId, reason: str | None, result: dict[str, object]
) -> AuditEntry:
    lasting = {} if order.lasting is None else {"seconds": order.lasting.total_seconds()}
    return AuditEntry(
        actor=order.actor,
        role=order.role,
        call=call,
        outcome=AuditOutcome.DONE,
        parameters={"source": watched.source.name, "job_id": str(job_id), **lasting, "reason": reason},
        result=result,
        source=watched.source.name,
        job_id=job_id,
    )


def unknown_job(watched: Watched, job_id: JobId) -> UnknownJobError:
    """Say that there is no such job."""
    return UnknownJobError(
        Phrase("Source %(source)s has no job %(job)s.", source=repr(watched.source.name), job=job_id)
    )


def kept_snoozes(watched: Watched) -> Snoozes:
    """Return where snoozes are kept; raise `InvalidRequestError` where nothing keeps them."""
    if watched.snoozes is None:
        raise InvalidRequestError(f"Source {watched.source.name!r} has nowhere to keep a snooze.")
    return watched.snoozes


async def live_snoozes(watched: Watched, now: datetime | None = None) -> Sequence[Snooze]:
    """Return the snoozes of a source that haven't ended, those that end first before others."""
    if watched.snoozes is None:
        return ()
    return await watched.snoozes.live(watched.source.name, await watched.source.clock() if now is None else now)


async def left_alone(watched: Watched, now: datetime) -> frozenset[JobId]:
    """Return the jobs that are snoozed at a look."""
    return frozenset(each.job_id for each in await live_snoozes(watched, now))


async def standing(watched: Watched, job_id: JobId, now: datetime) -> Snooze | None:
    """Return a job's snooze, None where it has none that stands."""
    found = (each for each in await live_snoozes(watched, now) if str(each.job_id) == str(job_id))
    return next(found, None)

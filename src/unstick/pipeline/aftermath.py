"""What became of recovered jobs: late finishes are found, and who succeeded after all gets their budget back.

Guarantee: a finish is recorded once, however many look for it at once; a pass looks at a bounded number of jobs, and
its cost follows the recoveries within the recovery window, never the history before it.
Known weakness: a job that succeeds, is queued again by its application and gets stuck, all between two looks, was never
seen succeeded.
"""

from dataclasses import dataclass

from unstick.domain.aftermath import end_of
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.pipeline.watched import Watched

FOLLOW_UP_CALL = "jobs.follow_up"
"""What a follow-up is called in the audit log, where it failed."""

JOBS_A_PASS = 20_000
"""Recovered jobs that are looked at after each sweep; where there are more, the next ones go on from there."""

_JOBS_A_PAGE = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """What a follow-up found."""

    looked_at: int = 0
    """Recovered jobs it went through, with those whose end was known already."""
    late: int = 0
    """Late finishes that weren't on record yet."""
    succeeded: int = 0
    """Jobs that succeeded in a new attempt, and weren't on record yet."""
    over: bool = True
    """It came to the end of the recovery window; else the next one goes on from where it stopped."""
    problem: str | None = None
    """Why it came to no end."""


async def follow_up(watched: Watched, *, whole: bool = False, besides: int | None = None) -> FollowUp:
    """Find out what became of the jobs recovered within the longest recovery window, newest first, and record it.

    Args:
        watched: the source, and the ledger its recoveries are in.
        whole: look at all of them, whatever their number; else at `JOBS_A_PASS`, going on from the time before.
        besides: an operation whose jobs are left for the next time.
    """
    source, ledger = watched.source, watched.ledger
    span = await ledger.follow_up_span(source.name, watched.policy.longest_recovery_window(source.name))
    if span is None:
        return FollowUp()
    place = None if whole else span.place
    looked_at = late = succeeded = 0
    over = False
    while not over and (whole or looked_at < JOBS_A_PASS):
        page = await ledger.recovered(source.name, span, before=place, limit=_JOBS_A_PAGE, besides=besides)
        place, over = page.last, page.last is None
        looked_at += page.number
        finished = await source.finished_among(page.jobs) if page.jobs else ()
        if finished:
            ends = [end_of(source.name, each) for each in finished]
            found = await ledger.keep_ends(source.name, ends)
            late, succeeded = late + found[0], succeeded + found[1]
    if not whole and place != span.place:
        await ledger.keep_place(source.name, place)
    return FollowUp(looked_at=looked_at, late=late, succeeded=succeeded, over=over)


async def follow_up_after(watched: Watched, operation_id: int | None, actor: str) -> FollowUp:
    """Follow up after a sweep, which a failure here doesn't undo: it is told, and recorded where that can be."""
    try:
        return await follow_up(watched, besides=operation_id)
    except Exception as error:  # noqa: BLE001 - whatever it is, the sweep was done and is answered as such
        problem = f"What became of jobs recovered before could not be looked up: {error} The next sweep tries again."
        entry = AuditEntry(
            actor=actor,
            call=FOLLOW_UP_CALL,
            outcome=AuditOutcome.FAILED,
            parameters={"source": watched.source.name},
            result={"problem": str(error)},
            operation_id=operation_id,
        )
        try:
            await watched.ledger.append(entry)
        except Exception as lost:  # noqa: BLE001 - the first error matters more
            problem += f" Nor could that be recorded: {lost}"
        return FollowUp(over=False, problem=problem)

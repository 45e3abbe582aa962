"""What became of recovered jobs: whether one finished after all, and whose attempt that was."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from unstick.domain.job import JobId, JobState
from unstick.domain.recovery import Action


class How(StrEnum):
    """How a late finish came to be known."""

    REFUSED = "refused"
    """The worker's end was refused, for its job had been taken."""
    FOUND = "found"
    """Nobody refused it: the job's row turned out to be succeeded."""


class Recovered(NamedTuple):
    """A job as one recovery left it. A tuple, for a follow-up looks at tens of thousands of them."""

    recovery_id: int
    job_id: JobId
    state: JobState
    """What it was stuck in."""
    action: Action
    at: datetime
    pre_image: str | None = None
    """What was overwritten, as a JSON object by the source's own names."""


class Attempt(NamedTuple):
    """What tells one attempt at a job from another; None where the source doesn't say."""

    started_at: datetime | None = None
    number: int | None = None
    token: int | str | None = None


class Finished(NamedTuple):
    """A recovered job whose source says now that it succeeded."""

    recovered: Recovered
    kind: str | None
    worker: str | None
    completed_at: datetime | None
    now: Attempt
    """The attempt that its row speaks of."""
    before: Attempt | None = None
    """The attempt that was overwritten; None where the recovery overwrote nothing of it."""
    tells_start: bool = True
    """The source has a place for the start of an attempt."""
    tells_token: bool = False
    """The source has a place for a token."""


class End(NamedTuple):
    """The known end of a recovered job."""

    finished: Finished
    late: bool
    """The attempt that was given up finished after all."""
    name: str
    """Names the finish by what the row says of it: whoever finds it, after whichever recovery, names it the same."""

    @property
    def recovery_id(self) -> int:
        """The recovery it is looked at after."""
        return self.finished.recovered.recovery_id

    @property
    def ran(self) -> timedelta | None:
        """How long the attempt ran from its start to its end, None where either isn't known."""
        now, before, over = self.finished.now, self.finished.before, self.finished.completed_at
        began = now.started_at or (before.started_at if self.late and before is not None else None)
        return None if began is None or over is None else over - began


def end_of(source: str, finished: Finished) -> End:
    """Say whose finish it is that a recovered job's row tells of."""
    return End(finished, is_late(finished), _name(source, finished))


def is_late(finished: Finished) -> bool:
    """Tell whether it was the attempt that had been given up which finished.

    A start after the recovery, and a token or number beyond what the recovery left, prove another attempt. Without
    such a proof a job that was failed finished late; one that was queued again did where its row is as the recovery
    left it, or as the old attempt had it. A row that tells neither gets the benefit of the doubt.
    Known weakness: a start written by a clock that is behind the database's may seem to be of before the recovery.
    """
    recovered = finished.recovered
    if recovered.action is Action.MARK_FAILED:
        # Of a job that was never claimed there is no other attempt: its first one is the one that was given up.
        return recovered.state is JobState.QUEUED or not _began_since(finished)
    if _began_since(finished) or _was_claimed_since(finished):
        return False
    return finished.tells_start or finished.tells_token or _has_old_number(finished)


def _began_since(finished: Finished) -> bool:
    began = finished.now.started_at
    return began is not None and began > finished.recovered.at


def _was_claimed_since(finished: Finished) -> bool:
    now, before = finished.now, finished.before or Attempt()
    if isinstance(now.token, int):
        was = before.token if isinstance(before.token, int) else 0
        if now.token > was + 1:  # the retry itself takes one
            return True
    elif now.token is not None and now.token != before.token:
        return True
    counted = 1 if finished.recovered.state is JobState.RUNNING else 0
    return now.number is not None and before.number is not None and now.number > before.number + counted


def _has_old_number(finished: Finished) -> bool:
    """Tell whether a running job's row bears the number it had before the retry counted on."""
    now, before = finished.now, finished.before or Attempt()
    ran = finished.recovered.state is JobState.RUNNING
    return ran and now.number is not None and now.number == before.number


def _name(source: str, finished: Finished) -> str:
    now, recovered = finished.now, finished.recovered
    instants = [None if at is None else at.isoformat() for at in (now.started_at, finished.completed_at)]
    said: list[object] = [source, str(recovered.job_id), *instants, now.number, now.token]
    if not any(instants):  # nothing tells one finish of a job from the next but what was done to it before
        said.append(recovered.recovery_id)
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class LateFinish:
    """One late finish, as it was recorded."""

    job_id: str
    kind: str | None
    how: How
    worker: str | None
    attempt: int | None
    ended: JobState
    ran: timedelta | None
    """How long the attempt ran, where both ends of it are known."""
    detail: str | None
    recovery_id: int | None
    """The recovery it came after, where that is known."""
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LateCounts:
    """Late finishes of one source since an instant."""

    since: datetime
    by_how: Mapping[How, int]
    by_kind: Mapping[str | None, int]
    """The most frequent kinds; None stands for jobs without one."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_how.values())


class LateRuns(NamedTuple):
    """Late successes of one kind, and how long the longest of their attempts ran."""

    kind: str | None
    number: int
    longest: timedelta | None

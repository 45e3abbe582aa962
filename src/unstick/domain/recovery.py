"""What is done to a stuck job, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple

from unstick.domain.diagnosis import Reason
from unstick.domain.job import JobId, JobState
from unstick.domain.suspect import Look, Suspect
from unstick.domain.wording import say_duration

_CLEANED_UP = " Automatically cleaned up."


class Action(StrEnum):
    """What can be done about a stuck job."""

    MARK_FAILED = "mark_failed"
    RETRY = "retry"


class Outcome(StrEnum):
    """What came of one decision."""

    APPLIED = "applied"
    LOST_RACE = "lost_race"
    """The job changed, or somebody held its row, between our look and our write. Normal, never an error."""
    FAILED = "failed"
    """The row couldn't be read, or the database refused the write."""


class Decision(NamedTuple):
    """What is to be done to one suspect, and why. A tuple, for a sweep makes hundreds of thousands of them."""

    suspect: Suspect
    action: Action
    reason: Reason
    sentence: str
    wait: timedelta = timedelta(0)
    """How long after the recovery a retried job is due."""

    def error_message(self, look: Look, length: int | None = None) -> str:
        """Return what the job's error column is to say, in at most `length` characters.

        It starts with `Job stuck` and ends with `Automatically cleaned up.`, as the contract says; what is
        too long is cut in between.
        """
        limit = say_duration(look.threshold(self.suspect.state))
        said = f"Job stuck in {self.suspect.state.value} for more than {limit}: {self.sentence}."
        if length is not None and len(said) + len(_CLEANED_UP) > length:
            said = said[: max(0, length - len(_CLEANED_UP) - 1)] + "…"
        return (said + _CLEANED_UP)[:length]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Decisions of one action, carried out in one transaction for one operation."""

    action: Action
    decisions: Sequence[Decision]
    look: Look
    operation_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What came of a batch; a decision in neither set lost its race."""

    applied: frozenset[JobId]
    refused: Mapping[JobId, str]
    """What the database said of each row it refused."""

    def outcome(self, job_id: JobId) -> Outcome:
        """Return what came of the decision on this job."""
        if job_id in self.applied:
            return Outcome.APPLIED
        return Outcome.FAILED if job_id in self.refused else Outcome.LOST_RACE


class Ruled(NamedTuple):
    """What came of one batch to which a ruling was applied."""

    recovered: int
    left: bool
    """Some suspects were left, to be looked at one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many jobs of each state came to each outcome, by action and reason."""

    counts: Mapping[tuple[JobState, Action, Reason, Outcome], int]

    def of(
        self,
        *,
        state: JobState | None = None,
        action: Action | None = None,
        reason: Reason | None = None,
        outcome: Outcome | None = None,
    ) -> int:
        """Count what matches every word given."""
        wanted = (state, action, reason, outcome)
        return sum(n for key, n in self.counts.items() if all(w in (None, k) for w, k in zip(wanted, key, strict=True)))

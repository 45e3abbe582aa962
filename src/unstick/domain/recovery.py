"""What is done to a stuck job, and what came of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
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
    LEAVE = "leave"


CHANGES = (Action.MARK_FAILED, Action.RETRY)
"""The actions that write to a job."""


class Undo(StrEnum):
    """What can be done about a recovery. No action: no policy chooses it, and no request asks a sweep for it."""

    UNDO = "undo"


Deed = Action | Undo
"""What a record can be of."""


def deed(word: str) -> Deed:
    """Return what a record's word means."""
    return Undo.UNDO if word == Undo.UNDO else Action(word)


class Outcome(StrEnum):
    """What came of one decision."""

    APPLIED = "applied"
    LOST_RACE = "lost_race"
    """The job changed, or somebody held its row, between our look and our write. Normal, never an error."""
    FAILED = "failed"
    """The row couldn't be read, or the database refused the write."""
    LEFT = "left"
    """The policy leaves it alone, or to a person."""
    BRAKED = "braked"
    """The brake held the sweep: too many at once."""


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
        age, limit = look.taken_at - self.suspect.since, look.threshold(self.suspect.state)
        long = f"more than {say_duration(limit)}" if age >= limit else say_duration(age)
        said = f"Job stuck in {self.suspect.state.value} for {long}: {self.sentence}."
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
    at: datetime | None = None
    """The instant that is written; the transaction's own where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What came of a batch; a decision in neither set lost its race."""

    applied: frozenset[JobId]
    refused: Mapping[JobId, str]
    """What the database said of each row it refused."""
    pre_images: Mapping[JobId, str] = field(default_factory=dict)
    """What each applied decision overwrote, as read under the lock; only where the source records nothing itself."""

    def outcome(self, job_id: JobId) -> Outcome:
        """Return what came of the decision on this job."""
        if job_id in self.applied:
            return Outcome.APPLIED
        return Outcome.FAILED if job_id in self.refused else Outcome.LOST_RACE


LOST_RACE = "it changed after it was looked at, or somebody held its row; it was left alone"
"""What is recorded of a decision that lost its race."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The record of one decision, or of its undo: what was to be done to a job, why, and what came of it."""

    job_id: JobId
    state: JobState
    action: Deed
    reason: Reason
    outcome: Outcome
    detail: str
    """What the job was told, or what stood in the way."""
    pre_image: str | None = None
    """What was overwritten, as a JSON object by the source's own names."""
    post_image: str | None = None
    """What was written, likewise."""
    undoes: int | None = None
    """The recovery that was taken back, where this is an undo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What is about to be done to a job, recorded beforehand where the record can't commit with the change."""

    job_id: JobId
    state: JobState
    action: Deed
    reason: Reason
    detail: str
    pre_image: str
    """What is to be overwritten, as a JSON object by the source's own names."""
    post_image: str
    """What it is to be then."""
    undoes: int | None = None
    """The recovery that is to be taken back, where this is an undo."""
    at: datetime | None = None
    """When it was committed, by the ledger's clock; None as long as it isn't."""

    def came_to(self, outcome: Outcome, detail: str | None = None, pre_image: str | None = None) -> Recovery:
        """Return the record of what came of it, with the pre-image as it was overwritten, where that is known."""
        return Recovery(
            job_id=self.job_id,
            state=self.state,
            action=self.action,
            reason=self.reason,
            outcome=outcome,
            detail=self.detail if detail is None else detail,
            pre_image=self.pre_image if pre_image is None else pre_image,
            post_image=self.post_image if outcome is Outcome.APPLIED else None,
            undoes=self.undoes,
        )


def settled(intent: Intent, image: str | None, retried_since: int) -> Recovery:
    """Tell from what stands now in a job's row what became of an intent whose process ended before it said so.

    A row that is neither as it was before nor as we would have left it has moved on. A retry then counts as applied,
    for its budget's sake: a job that is queued again and again must come to an end. But where another recovery is on
    record that was made since, that was the one which moved it.
    """
    if image is not None and _same(image, intent.post_image):
        return intent.came_to(Outcome.APPLIED)
    if image is not None and _same(image, intent.pre_image):
        return intent.came_to(Outcome.FAILED, "the process ended before this was carried out")
    if intent.action is Action.RETRY and image is not None and not retried_since:
        return intent.came_to(Outcome.APPLIED)
    return intent.came_to(
        Outcome.LOST_RACE, "the process ended meanwhile, and when looked at again the job had moved on"
    )


def _same(one: str, other: str) -> bool:
    return bool(json.loads(one) == json.loads(other))


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

"""What pages and forms take: as the API takes it, but that an empty field asks for nothing."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from unstick.domain.audit import AuditOutcome
from unstick.domain.diagnosis import STUCK, Reason
from unstick.domain.filter import StuckFilter
from unstick.domain.policy import MAX_THRESHOLD_MINUTES
from unstick.domain.recovery import Action
from unstick.domain.snooze import LONGEST_REASON
from unstick.pipeline.history import DEFAULT_DAYS, MAX_DAYS

PAGE = 50
"""Rows of a page."""
_LONGEST = 200
_LARGEST_ID = 2**63 - 1


def _or_none(sent: object) -> object:
    return None if isinstance(sent, str) and not sent.strip() else sent


_empty = BeforeValidator(_or_none)
Text = Annotated[str | None, Field(max_length=_LONGEST), _empty]
Cursor = Annotated[str | None, Field(max_length=2000), _empty]
Minutes = Annotated[int | None, Field(ge=1, le=MAX_THRESHOLD_MINUTES), _empty]
Why = Annotated[str | None, Field(max_length=LONGEST_REASON), _empty]
Deed = Annotated[Literal[Action.MARK_FAILED, Action.RETRY] | None, _empty]


class PageQuery(BaseModel):
    """What every page takes."""

    model_config = ConfigDict(extra="forbid")

    source: Text = None


class _Filter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    queue: Text = None
    kind: Text = None
    reason: Annotated[Reason | None, _empty] = None
    older: Minutes = None

    @field_validator("reason")
    @classmethod
    def _is_of_stuck_jobs(cls, reason: Reason | None) -> Reason | None:
        if reason is not None and reason not in STUCK:
            raise ValueError("is no reason of stuck jobs")
        return reason

    @property
    def older_than(self) -> timedelta | None:
        """The age that is asked for."""
        return None if self.older is None else timedelta(minutes=self.older)


class StuckQuery(_Filter):
    """Which stuck jobs are shown."""

    source: Text = None
    text: Text = None
    cursor: Cursor = None

    @property
    def wanted(self) -> StuckFilter:
        """What a job must be."""
        return StuckFilter(
            queue=self.queue, kind=self.kind, reason=self.reason, older_than=self.older_than, text=self.text
        )

    @property
    def in_force(self) -> dict[str, str]:
        """What is asked for, by field."""
        return {
            name: str(value) for name in ("queue", "kind", "reason", "older", "text") if (value := getattr(self, name))
        }


class CleanupForm(_Filter):
    """Of which stuck jobs a cleanup is planned, and what is to be done to them."""

    action: Deed = None

    @property
    def wanted(self) -> StuckFilter:
        """What a job must be."""
        return StuckFilter(queue=self.queue, kind=self.kind, reason=self.reason, older_than=self.older_than)


class RecoverForm(BaseModel):
    """What is done to one job, and why."""

    model_config = ConfigDict(extra="forbid")

    action: Deed = None
    reason: Why = None


class SnoozeForm(BaseModel):
    """For how long one job is left alone, and why."""

    model_config = ConfigDict(extra="forbid")

    minutes: Annotated[int, Field(ge=1, le=MAX_THRESHOLD_MINUTES)]
    reason: Annotated[str, Field(min_length=1, max_length=LONGEST_REASON)]


class ReasonForm(BaseModel):
    """Why something is done."""

    model_config = ConfigDict(extra="forbid")

    reason: Why = None


class AuditQuery(PageQuery):
    """Which entries of the audit log are shown."""

    actor: Text = None
    call: Text = None
    outcome: Annotated[AuditOutcome | None, _empty] = None
    job: Text = None
    all: bool = False
    """Calls that only read something, too."""
    before: Annotated[int | None, Field(ge=1, le=_LARGEST_ID), _empty] = None


class SweepsQuery(PageQuery):
    """Which sweeps are shown."""

    before: Annotated[int | None, Field(ge=1, le=_LARGEST_ID), _empty] = None


class ReplayQuery(PageQuery):
    """Which thresholds are replayed."""

    days: Annotated[int, Field(ge=1, le=MAX_DAYS)] = DEFAULT_DAYS
    running: Minutes = None
    queued: Minutes = None
    kind: Text = None

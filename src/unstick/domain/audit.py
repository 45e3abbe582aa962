"""The audit log's entries: every call, refused ones too, and every operation's beginning and end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from unstick.domain.job import JobId

RECOVER_CALL = "jobs.recover"
SNOOZE_CALL = "jobs.snooze"
UNSNOOZE_CALL = "jobs.unsnooze"
"""What calls about one job are named in the log, whoever asked for them."""


class AuditOutcome(StrEnum):
    """What came of a call."""

    STARTED = "started"
    """An operation that changes jobs has begun; its end is an entry of its own."""
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who asked for what, with which parameters, and what came of it."""

    actor: str
    call: str
    """What was asked for: `jobs.stuck`, `jobs.cleanup`, `stats`."""
    outcome: AuditOutcome
    role: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    result: Mapping[str, object] = field(default_factory=dict)
    operation_id: int | None = None
    """The entry that began the operation this one belongs to."""
    source: str | None = None
    job_id: JobId | None = None
    """The job it is about, where it is about one alone."""

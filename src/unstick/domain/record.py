"""The record as it is read back: entries of the audit log, and what was done over time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from unstick.domain.audit import AuditOutcome
from unstick.domain.errors import InvalidRequestError
from unstick.domain.recovery import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryFilter:
    """What an entry must be; what is None asks nothing."""

    actor: str | None = None
    calls: tuple[str, ...] | None = None
    """Any of these calls."""
    outcome: AuditOutcome | None = None
    job_id: str | None = None
    changes: bool = False
    """Calls that only read something are left out."""

    def __post_init__(self) -> None:
        """Refuse what no entry can hold and not every database can be asked for."""
        for said in (self.actor, self.job_id, *(self.calls or ())):
            if said is not None and "\0" in said:
                raise InvalidRequestError("No entry of the audit log has a NUL in it.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One entry of the audit log."""

    id: int
    at: datetime
    last_at: datetime
    repeats: int
    """How many identical reads within a minute it stands for."""
    actor: str
    role: str | None
    call: str
    outcome: AuditOutcome
    parameters: Mapping[str, object] = field(default_factory=dict)
    result: Mapping[str, object] = field(default_factory=dict)
    source: str | None = None
    job_id: str | None = None
    operation_id: int | None = None
    """The entry that began the operation this one ends."""

    @property
    def operation(self) -> int | None:
        """The operation it begins or ends; None where it is of none."""
        return self.id if self.outcome is AuditOutcome.STARTED else self.operation_id


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryPage:
    """Some entries of the audit log, the newest first."""

    entries: tuple[Recorded, ...]
    next_before: int | None
    """Older ones are before this entry; None where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What was done within a span of time."""

    begins_at: datetime
    ends_at: datetime
    recovered: Mapping[Action, int]
    """Applied recoveries."""
    late_finishes: int

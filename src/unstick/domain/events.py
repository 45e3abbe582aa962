"""What each stage of the pipeline tells its listeners when it is done: the log, metrics, alerts, the event stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from unstick.domain.alert import Happened, Subject
from unstick.domain.diagnosis import Reason
from unstick.domain.job import JobId, JobState
from unstick.domain.queue import NOT_TOLD, Workers
from unstick.domain.recovery import Action, Outcome, Tally


class Trigger(StrEnum):
    """Who had a source swept."""

    UNATTENDED = "unattended"
    """Nobody: the runner, or cron."""
    REQUESTED = "requested"
    """A person, or the application."""


OTHERS = "(others)"
"""What the queues are called together that an observation doesn't tell apart."""


class QueueState(NamedTuple):
    """The jobs of a queue in a state; the queue is None where the source has no queues."""

    queue: str | None
    state: JobState


class QueueReason(NamedTuple):
    """The jobs of a queue that are stuck for a reason."""

    queue: str | None
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A brake that holds a source's unattended sweeps."""

    since: datetime
    suspects: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A source was looked at, and nothing changed."""

    source: str
    at: datetime
    """By the source's clock."""
    took: timedelta
    open_jobs: Mapping[QueueState, int]
    stuck: Mapping[QueueReason, int]
    undecided: int = 0
    """Running jobs that age accuses and no witness knows of."""
    exact: bool = True
    """Otherwise there are more stuck jobs than witnesses could be asked about."""
    oldest_queued: timedelta | None = None
    """For how long the longest waiting queued job could have been claimed."""
    oldest_running: timedelta | None = None
    """For how long the quietest running job has been silent."""
    held: Held | None = None
    grace_until: datetime | None = None
    """Until when unattended sweeps leave some of the stuck jobs alone, for the watch or the database was away."""
    late_finishes: int = 0
    """Recovered jobs that finished after all, within a day."""
    workers: Workers = NOT_TOLD
    """Who lives that could take the jobs that wait."""
    swept_at: datetime | None = None
    """When an unattended sweep last came to its end, whichever process made it; None where none is known of."""

    @property
    def stuck_jobs(self) -> int:
        """How many jobs are stuck."""
        return sum(self.stuck.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationFailed:
    """A source couldn't be looked at."""

    source: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A sweep, or the application of a plan, came to its end."""

    source: str
    at: datetime
    """When it looked, by the source's clock."""
    took: timedelta
    trigger: Trigger
    actor: str
    action: Action
    tally: Tally
    operation_id: int | None
    """None where a brake held it before it began."""
    held: Held | None = None
    late_finishes: int = 0
    """Late finishes that its follow-up found."""

    @property
    def recovered(self) -> int:
        """How many jobs it recovered."""
        return self.tally.of(outcome=Outcome.APPLIED)

    @property
    def did_nothing(self) -> bool:
        """Tell whether there was nothing to do, or nothing that it may do, and nothing in its way."""
        done = any(number for (*_, outcome), number in self.tally.counts.items() if outcome is not Outcome.LEFT)
        return not (done or self.held or self.late_finishes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFailed:
    """A sweep stopped before its end."""

    source: str
    took: timedelta
    trigger: Trigger
    actor: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecovered:
    """A person had one job recovered, or tried to."""

    source: str
    at: datetime
    actor: str
    job_id: JobId
    action: Action
    reason: Reason
    outcome: Outcome
    operation_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """Recoveries of an operation were taken back, where that could be."""

    source: str
    at: datetime
    actor: str
    undoes: int
    outcomes: Mapping[Outcome, int]
    operation_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeReleased:
    """A person let the next unattended sweep do what a brake held it from."""

    source: str
    actor: str
    suspects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadershipChanged:
    """This process began to lead a source, or ceased to."""

    source: str
    holder: str
    term: int
    leads: bool
    why: str = field(default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertChanged:
    """An alert was opened, told again, or resolved."""

    subject: Subject
    what: Happened
    jobs: int

    @property
    def source(self) -> str:
        """The source that it is about."""
        return self.subject.source


class Delivered(StrEnum):
    """What came of a message to a channel."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """It is tried again."""
    GAVE_UP = "gave_up"
    """It was tried for a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notified:
    """It was tried to tell a channel what happened to alerts."""

    source: str
    """A source of the ledger in which it was kept; the message may be of others as well."""
    channel: str
    outcome: Delivered
    alerts: int
    """How many changes the message was of."""
    problem: str = field(default="")


PipelineEvent = (
    Observed
    | ObservationFailed
    | Swept
    | SweepFailed
    | JobRecovered
    | Undone
    | BrakeReleased
    | LeadershipChanged
    | AlertChanged
    | Notified
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """An event as it is kept for whoever asks later."""

    id: int
    at: datetime
    """By the ledger's clock."""
    source: str
    kind: str
    told: Mapping[str, object]

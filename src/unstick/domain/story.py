"""What is known of one job: what its row says now, and what happened to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from unstick.domain.job import Job, JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a worker said of itself."""

    worker: str
    began_at: datetime
    beat_at: datetime
    expires_at: datetime

    def holds(self, now: datetime) -> bool:
        """Tell whether the worker is believed to live."""
        return self.expires_at > now


class Waits(NamedTuple):
    """Why a queued job waits with good reason."""

    reason: Literal["paused", "blocked"]
    value: str
    """What keeps it waiting, as its system tells it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job as it stands in its source, whatever its state."""

    job_id: JobId
    read_at: datetime
    """The source's clock as it was read."""
    status: str
    """The state in the source's own word, as stored."""
    job: Job | None
    """None where the row can't be understood; then `problem` says why."""
    problem: str | None = None
    progress: str | None = None
    success: bool | None = None
    error: str | None = None
    payload: object = None
    """What the job was given: as its row says it, and in a story as it may be shown."""
    lease: Lease | None = None
    """Its worker's, whether it holds or has run out."""
    waits: Waits | None = None
    blocks: str | None = None
    """The ids of other jobs that wait for it, as its system tells them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to a job, or is to happen."""

    at: datetime
    kind: str
    sentence: str
    """What happened, to follow its time."""
    data: Mapping[str, object] = field(default_factory=dict)
    """What is known besides, as JSON can say it."""

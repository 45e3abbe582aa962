"""What a worker holds: who it is, and the jobs it has claimed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from unstick.domain.job import JobId

BEAT_EVERY = timedelta(seconds=10)
"""How often a worker says that it lives."""
LEASE = timedelta(seconds=60)
"""How long a worker is believed to live after it last said so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """One process: a restarted one of the same host and number is another worker, by its boot id."""

    host: str
    pid: int
    boot_id: str

    @property
    def name(self) -> str:
        """What its jobs and its lease bear."""
        return f"{self.host}:{self.pid}:{self.boot_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """A job that this worker has claimed, as it was then."""

    id: JobId
    kind: str | None
    queue: str | None
    payload: object
    attempt: int | None
    """How often it was begun before; None where the table doesn't count."""
    max_attempts: int | None
    worker: str
    row: Mapping[str, object]
    """Its whole row, by the table's own column names."""
    fence: tuple[object, ...]
    """The fencing token: what its row must still hold when its end is written. Opaque outside the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life of one job, with its progress where that moved."""

    job: ClaimedJob
    progress: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be put into the queue."""

    kind: str
    payload: object = None
    key: str | None = None
    """Makes it safe to ask twice: a job with this key is queued once, ever."""
    queue: str | None = None
    wait: timedelta | None = None
    values: Mapping[str, object]
    """The table's other columns, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """A job in the queue; `created` is false where its key was there already."""

    job_id: JobId
    created: bool

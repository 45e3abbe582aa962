"""Which jobs age accuses: past their threshold, nothing proven yet."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from unstick.domain.job import Job, JobId, JobState, sign_of_life

ACCUSED_STATES = (JobState.QUEUED, JobState.RUNNING)
"""The states in which a job can be stuck, in the order reports list them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One reading of a source's clock and the thresholds judged by it.

    A pass judges every page by the same look, so that a job becomes neither older nor younger on the way.
    """

    taken_at: datetime
    queued_after: timedelta
    running_after: timedelta

    def horizon(self, state: JobState) -> datetime:
        """Return the instant before which a job's last sign accuses it in this state."""
        return self.taken_at - self.threshold(state)

    def threshold(self, state: JobState) -> timedelta:
        """Return the age allowed in this state; only queued and running have one."""
        return self.queued_after if state is JobState.QUEUED else self.running_after


class Suspect(NamedTuple):
    """A job past its threshold, with what a write must still find unchanged.

    A tuple, for a sweep makes hundreds of thousands of them.
    """

    job_id: JobId
    state: JobState
    since: datetime
    """The sign of life it is judged by."""
    seen: tuple[object, ...] = ()
    """The fence: the source's own raw values of this look. Opaque outside the source."""
    lease_expired: bool = False
    """Its worker held it by a lease, and let that run out; `since` is when the worker last beat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A row past its threshold that could not be understood; it is reported and never acted on."""

    job_id: JobId
    state: JobState
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One bounded page of suspects."""

    suspects: tuple[Suspect, ...]
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a list of suspects, oldest first, is continued: after this sign of life and this job."""

    since: datetime
    job_id: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckCounts:
    """Exact numbers of suspects by state."""

    queued: int
    running: int

    @property
    def total(self) -> int:
        """Both states together."""
        return self.queued + self.running


def is_suspect(job: Job, look: Look) -> bool:
    """Tell whether age accuses this job at this look."""
    if job.completed_at is not None or job.state not in ACCUSED_STATES:
        return False
    since = sign_of_life(job)
    return since is not None and since < look.horizon(job.state)

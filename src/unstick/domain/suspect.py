"""Which jobs age accuses: past their threshold, nothing proven yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self

from unstick.domain.errors import InvalidRequestError
from unstick.domain.job import Job, JobClass, JobId, JobState, sign_of_life

ACCUSED_STATES = (JobState.QUEUED, JobState.RUNNING)
"""The states in which a job can be stuck, in the order reports list them."""
NOT_OUR_CURSOR = "cursor is not one this service gave out; leave it out to start anew."


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One reading of a source's clock and the thresholds judged by it.

    A pass judges every page by the same look, so that a job becomes neither older nor younger on the way.
    """

    taken_at: datetime
    queued_after: timedelta
    running_after: timedelta
    classes: frozenset[JobClass] | None = None
    """Jobs of these alone are judged; None judges all."""
    draining: Mapping[str | None, datetime] = field(default_factory=dict)
    """Queues that drain in order, and how far they have come: who could be claimed only since then is waiting."""
    left_alone: frozenset[JobId] = frozenset()
    """Jobs that a person wants to be left alone."""
    only: frozenset[JobId] | None = None
    """These jobs alone are judged; None judges all."""
    states: tuple[JobState, ...] = ACCUSED_STATES
    """Jobs in these alone are judged."""
    by_start: bool = False
    """Running jobs are judged by their start alone, whatever life they show: to find those that hang."""

    @property
    def judges_all(self) -> bool:
        """Tell whether age alone decides who is a suspect."""
        unlimited = self.classes is None and self.only is None and self.states == ACCUSED_STATES
        return unlimited and not (self.draining or self.left_alone or self.by_start)

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
    """The fence: the source's own raw values of this look. Opaque outside the source.

    A plan keeps it as JSON, where what JSON doesn't know is text, and the source must take it in that form, too.
    """
    lease_expired: bool = False
    """Its worker held it by a lease, and let that run out; `since` is when the worker last beat."""
    attempt: int | None = None
    """How often it was begun before, where the source counts."""
    lost: str | None = None
    """How its message was lost, in words, as `Job.lost` has it."""


class SuspectGroup(NamedTuple):
    """Suspects that are counted together."""

    queue: str | None
    state: JobState
    lease_expired: bool
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedSuspects:
    """Numbers of suspects by what they are counted by."""

    counts: Mapping[SuspectGroup, int]
    exact: bool = True
    """Otherwise there are more than were read."""


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


class Mark(NamedTuple):
    """The last job of a stretch of suspects, from which the next one goes on."""

    begun: str | None
    """By what its source orders suspects without sorting them all; opaque outside the source."""
    job_id: JobId

    @property
    def position(self) -> "Position":
        """Where it is in a list by signs of life; raise InvalidRequestError where `Stretch.by_age` didn't set it."""
        try:
            return Position(since=datetime.fromisoformat(self.begun or "").astimezone(UTC), job_id=self.job_id)
        except (ValueError, OverflowError) as error:
            raise InvalidRequestError(NOT_OUR_CURSOR) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A bounded number of suspects, those that began first or last, in no order that is promised."""

    jobs: tuple[Job, ...]
    end: Mark | None
    """None where no suspect comes after these."""

    @classmethod
    def by_age(cls, jobs: tuple[Job, ...], size: int) -> Self:
        """Return the stretch that some jobs are whose source sorts all suspects by their signs of life anyway."""
        last = jobs[-1] if len(jobs) == size else None
        since = None if last is None else sign_of_life(last)
        return cls(jobs=jobs, end=None if last is None or since is None else Mark(since.isoformat(), last.id))


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckCounts:
    """Numbers of suspects by state."""

    queued: int
    running: int
    exact: bool = True
    """Otherwise there are more than were read."""

    @property
    def total(self) -> int:
        """Both states together."""
        return self.queued + self.running


def is_suspect(job: Job, look: Look) -> bool:
    """Tell whether age accuses this job at this look."""
    if job.completed_at is not None or job.state not in look.states or job.id in look.left_alone:
        return False
    if look.only is not None and job.id not in look.only:
        return False
    if look.classes is not None and JobClass(job.kind, job.queue) not in look.classes:
        return False
    since = job.started_at if look.by_start else sign_of_life(job)
    return since is not None and since < look.horizon(job.state) and not is_backlog(job, since, look)


def is_backlog(job: Job, since: datetime, look: Look) -> bool:
    """Tell whether a queued job waits for its turn in a queue that drains in order."""
    reached = look.draining.get(job.queue) if job.state is JobState.QUEUED else None
    return reached is not None and since >= reached

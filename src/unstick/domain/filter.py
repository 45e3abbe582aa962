"""Which of the stuck jobs somebody wants to see, or to have recovered."""

from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase

from unstick.domain.diagnosis import Reason
from unstick.domain.job import Job, JobClass, JobState
from unstick.domain.suspect import ACCUSED_STATES

WAITING = frozenset({Reason.NEVER_CLAIMED, Reason.OVERTAKEN, Reason.UNSERVED, Reason.MESSAGE_LOST})
"""The reasons of queued jobs; the others are those of running ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckFilter:
    """What a stuck job must be; what is None asks nothing."""

    queue: str | None = None
    """A glob, as in the rules of a policy."""
    kind: str | None = None
    """Likewise."""
    reason: Reason | None = None
    older_than: timedelta | None = None
    """For how long it must have shown no sign of life."""
    text: str | None = None
    """What its id, kind, queue or worker must contain, in whatever letter case."""

    @property
    def names_classes(self) -> bool:
        """Tell whether it is about some kinds or queues only."""
        return self.queue is not None or self.kind is not None

    def takes_class(self, jobs: JobClass) -> bool:
        """Tell whether jobs of a kind and queue are meant."""
        pairs = ((self.queue, jobs.queue), (self.kind, jobs.kind))
        return all(pattern is None or fnmatchcase(said or "", pattern) for pattern, said in pairs)

    def takes_state(self, state: JobState, waiting: Reason) -> bool:
        """Tell whether jobs in a state can be meant, where queued ones wait for this reason."""
        if self.reason is None:
            return True
        return self.reason is waiting if state is JobState.QUEUED else self.reason not in WAITING

    @property
    def states(self) -> tuple[JobState, ...]:
        """The states that a job which is meant can be in."""
        if self.reason is None:
            return ACCUSED_STATES
        return (JobState.QUEUED,) if self.reason in WAITING else (JobState.RUNNING,)

    def takes(self, job: Job, reason: Reason) -> bool:
        """Tell whether a job that is stuck for a reason is meant."""
        if self.reason is not None and self.reason is not reason:
            return False
        if not self.takes_class(JobClass(job.kind, job.queue)):
            return False
        if self.text is None:
            return True
        said = (str(job.id), job.kind, job.queue, job.worker)
        return any(self.text.casefold() in each.casefold() for each in said if each is not None)

"""Whether a worker that is there now can be the one that took a job, or is another of the same name or number.

Known weakness: it needs a `started_at` or heartbeat that is written when a worker takes the job. A table whose only
time is that of enqueueing makes every worker that began since look like another.
"""

from datetime import datetime, timedelta

from unstick.domain.evidence import Holding
from unstick.domain.job import Job, running_since
from unstick.domain.wording import Phrase

CLOCKS_APART = timedelta(seconds=2)
"""By so much two clocks may differ that are set by the network; nothing is concluded from less."""


def held_since(began_at: datetime, job: Job) -> Holding:
    """Say whether a job can be in the hands of a worker that began then.

    HELD where it was there when the job was taken, RELEASED where it began after the job's last sign of life, and
    UNKNOWN in between: then the times don't tell.
    """
    last = running_since(job.started_at, job.heartbeat_at)
    if last is None:
        return Holding.UNKNOWN
    if began_at <= (job.started_at or last):
        return Holding.HELD
    return Holding.RELEASED if began_at > last + CLOCKS_APART else Holding.UNKNOWN


def say_another(worker: str, began_at: datetime) -> Phrase:
    """Say that a worker began after the job was last known to run."""
    return Phrase("%(worker)s began at %(at)s, after the job: it is another one", worker=worker, at=began_at)


def say_unclear(worker: str, began_at: datetime) -> Phrase:
    """Say that nobody knows whether a worker is the one that took the job."""
    return Phrase(
        "%(worker)s began at %(at)s: the job's times don't tell whether it is the same one", worker=worker, at=began_at
    )

"""What is remembered of a suspect from one look to the next."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from unstick.domain.job import Job, JobId
from unstick.domain.suspect import Suspect

LOOKS_APART = timedelta(seconds=30)
"""Looks that are closer than this are one."""
LONGEST_PROGRESS = 200
"""Longer progress is remembered by its beginning and its fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighted:
    """How a job looks now: which attempt of it, and how far that has come by the job's own word."""

    job_id: JobId
    attempt: str
    """Tells one attempt from the next; opaque."""
    progress: str | None

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return how a job looks."""
        attempt = repr((job.attempt, job.worker, job.started_at))
        return cls(job_id=job.id, attempt=_fingerprint(attempt), progress=_short(job.progress))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """A job as a pass found it stuck: which attempt of it, and since when."""

    job_id: JobId
    mark: str
    """Another one where it has shown any life since; opaque."""

    @classmethod
    def of(cls, suspect: Suspect, since: datetime) -> Self:
        """Return a suspect that has been stuck since then."""
        return cls(job_id=suspect.job_id, mark=_fingerprint(repr((suspect.state, since, suspect.attempt))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What is known of one attempt by the looks at which it was a suspect."""

    progress: str | None
    first_seen_at: datetime
    seen_at: datetime
    """When it was last looked at."""
    looks: int
    """How often it was looked at, this time included."""
    moved_at: datetime | None = None
    """When its progress was last seen to have moved, None where it hasn't moved since it was first seen."""
    moved_from: str | None = None
    """What its progress was before."""


def _short(progress: str | None) -> str | None:
    if progress is None or len(progress) <= LONGEST_PROGRESS:
        return progress
    return f"{progress[:LONGEST_PROGRESS]}… {_fingerprint(progress)}"


def _fingerprint(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()

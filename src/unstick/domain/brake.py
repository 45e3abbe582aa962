"""When an unattended sweep must not act: too many jobs at once, or a watch that was interrupted.

A mass event is an outage, not a thousand stuck jobs: whoever fails them all makes it worse.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from unstick.domain.job import Job, JobState, sign_of_life
from unstick.domain.schedule import ROUND_MAY_TAKE
from unstick.domain.wording import Phrase

TOGETHER = timedelta(seconds=90)
"""Signs of life that lie this close together stopped together: several missed beats of 10 to 30 s."""
MOST = 0.8
"""The share of suspects that makes something typical of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeLimits:
    """How much an unattended sweep may do: more jobs of a state than `jobs` and than this share of them hold it."""

    share: float = 0.2
    jobs: int = 50

    def hold(self, suspects: int, still_open: int) -> bool:
        """Tell whether so many suspects among the open jobs of a state are a mass event."""
        return suspects > self.jobs and suspects > self.share * still_open


@dataclass(frozen=True, slots=True, kw_only=True)
class Unattended:
    """How sweeps that nobody watches are run."""

    every: timedelta = timedelta(minutes=10)
    """How far apart they are meant to be: more than three times as much is a gap, if one can't take so long."""
    brake: BrakeLimits = BrakeLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Brake:
    """A held brake: no unattended sweep of the source acts until a person releases it."""

    source: str
    at: datetime
    suspects: int
    """How many jobs would have been recovered."""
    still_open: int
    """How many there were in their states."""
    cause: str
    """What seems to have happened, to follow `It looks like`; a phrase, where it wasn't kept by an older version."""
    released_at: datetime | None = None
    released_by: str | None = None

    @property
    def is_held(self) -> bool:
        """Tell whether it still holds."""
        return self.released_at is None

    def lets(self, suspects: int) -> bool:
        """Tell whether a released brake lets a sweep of so many jobs through: as many as the person was shown."""
        return not self.is_held and suspects <= self.suspects


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The last unattended sweep of a source that was there to see its jobs."""

    at: datetime
    back_at: datetime | None = None
    """When the watch over it, or its database, was back after it had been away; its jobs have a grace since then."""
    before: datetime | None = field(default=None, compare=False)
    """When the pass before it was, None where it is the first one or that isn't told."""


def next_pass(last: Pass | None, now: datetime, every: timedelta, up_since: datetime | None) -> Pass:
    """Return this pass: one after a gap in the watch, or in the database's life, begins a grace.

    Args:
        last: the pass before, None where this is the first one.
        now: the source's clock.
        every: how far apart passes are meant to be.
        up_since: since when the database has been up, None where it doesn't say.
    """
    before = None if last is None else last.at
    if last is None or now - last.at > max(3 * every, ROUND_MAY_TAKE + every):
        return Pass(at=now, back_at=now, before=before)
    if up_since is not None and up_since > last.at:
        return Pass(at=now, back_at=up_since, before=before)
    return Pass(at=now, back_at=last.back_at, before=before)


def grace_until(this: Pass, threshold: timedelta) -> datetime | None:
    """Return until when jobs judged by a threshold are left alone at a pass, to have time to show a sign of life.

    None where they have had that time.
    """
    if this.back_at is None or this.at - this.back_at >= threshold:
        return None
    return this.back_at + threshold


def say_grace(until: datetime) -> Phrase:
    """Say until when jobs are left alone, and why."""
    return Phrase("until %(at)s, a grace after the watch or the database was away", at=until)


def likely_cause(suspects: Sequence[Job], *, others_live: bool) -> Phrase:
    """Say what seems to have happened to many jobs at once, most telling first.

    Args:
        suspects: a sample of them.
        others_live: other jobs are running all right.
    """
    running = [job for job in suspects if job.state is JobState.RUNNING]
    if 2 * len(running) < len(suspects):
        return _queued_cause(suspects)
    signs = sorted(since for job in running if (since := _last_sign(job)) is not None)
    return next(_running_causes(running, signs, others_live=others_live), _no_cause(signs))


def _running_causes(running: Sequence[Job], signs: Sequence[datetime], *, others_live: bool) -> Iterator[Phrase]:
    together = _together(signs)
    if together is not None and not others_live:
        yield Phrase("an outage: all signs of life stopped together at %(at)s, and nothing beats since", at=together)
    hosts = Counter(host for job in running if (host := _host(job)) is not None)
    if len(hosts) > 1 and (host := _typical(hosts, len(running))) is not None:
        yield Phrase("host %(host)s is gone: it had %(n)s of %(of)s of them", host=host, n=hosts[host], of=len(running))
    workers = {job.worker for job in running if job.worker is not None}
    if together is not None and len(workers) > 1:
        yield Phrase(
            "a deploy: %(n)s workers stopped together at %(at)s, while others go on", n=len(workers), at=together
        )
    if together is not None:
        yield Phrase("one event: their signs of life stopped together at %(at)s, while others go on", at=together)
    kinds = Counter(job.kind for job in running if job.kind is not None)
    if others_live and (kind := _typical(kinds, len(running))) is not None:
        yield Phrase(
            "jobs of kind %(kind)s: they are %(n)s of %(of)s of them", kind=kind, n=kinds[kind], of=len(running)
        )


def _queued_cause(suspects: Sequence[Job]) -> Phrase:
    queues = Counter(job.queue for job in suspects if job.queue is not None)
    queue = _typical(queues, len(suspects))
    if queue is None:
        return Phrase("the queue is not served: most of them wait to be claimed")
    return Phrase("queue %(queue)s is not served: most of them wait to be claimed", queue=queue)


def _no_cause(signs: Sequence[datetime]) -> Phrase:
    if len(signs) < 2:  # noqa: PLR2004 - two make a span
        return Phrase("nothing that they have in common")
    over = signs[-1] - signs[0]
    return Phrase("nothing that they have in common; their signs of life stopped over %(time)s", time=over)


def _last_sign(job: Job) -> datetime | None:
    return job.lease_beat_at or sign_of_life(job)


def _host(job: Job) -> str | None:
    """Return the host of a worker that is named as ours are: host, process number, boot id."""
    return job.worker.split(":", 1)[0] if job.worker and ":" in job.worker else None


def _typical(counts: Mapping[str, int], of: int) -> str | None:
    name, number = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return name if number and number >= MOST * of else None


def _together(signs: Sequence[datetime]) -> datetime | None:
    """Return when most signs of life stopped, if that was within a short time."""
    if not signs:
        return None
    needed = max(1, int(MOST * len(signs)))
    for first, last in zip(signs, signs[needed - 1 :], strict=False):
        if last - first <= TOGETHER:
            return last
    return None

"""Alerts: what is wrong with a source, told when it begins, again when it lasts or grows, and when it is over.

All that is wrong for one cause in one queue is one alert, however many jobs it is and however often it is seen.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from unstick.domain.diagnosis import Reason

COOL_DOWN = timedelta(hours=4)
"""How long nobody is told again of what they were told."""
DIGEST_FROM = 6
"""So many changes that are due at once are told in one message."""
GIVE_UP_AFTER = timedelta(days=1)
"""How long it is tried to tell somebody of a change."""
_MANY_TIMES = 2
_MANY_MORE = 10


class Trouble(StrEnum):
    """What can be wrong with a source besides stuck jobs."""

    UNOBSERVED = "unobserved"
    """It can't be observed, twice in a row: one failure is a hiccup."""
    SWEEP_FAILED = "sweep_failed"
    """An unattended sweep stopped before its end."""
    BRAKE = "brake"
    """The brake holds its unattended sweeps."""
    LATE_FINISHES = "late_finishes"
    """Jobs that were recovered finished after all, within a day."""


class Subject(NamedTuple):
    """What an alert is about; the queue is None where the source has none, or it isn't about one."""

    source: str
    queue: str | None
    what: Reason | Trouble


class Finding(NamedTuple):
    """What was found of a subject."""

    jobs: int
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What an event says of the subjects that it speaks of; one of these that wasn't found is over."""

    source: str
    found: Mapping[Subject, Finding] = field(default_factory=dict)
    speaks_of: AbstractSet[Reason | Trouble]
    observation: bool = False
    """The source was observed: what the first one finds is told only when the next one finds it, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What is or was wrong, from when it was first found until it was found no more."""

    id: str
    subject: Subject
    opened_at: datetime
    """By the ledger's clock, as all its times."""
    seen_at: datetime
    jobs: int
    """How many it was when it was last seen."""
    sentence: str
    notified_at: datetime | None = None
    """When it was last decided to tell that it is there; None where nobody was told yet."""
    notified_jobs: int = 0
    """How many it was then."""
    resolved_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether it is still there."""
        return self.resolved_at is None


class Happened(StrEnum):
    """What happened to an alert."""

    FOUND = "found"
    """It is there, and nobody is told yet."""
    OPENED = "opened"
    AGAIN = "again"
    """It is still there after the cool-down, or has grown by much."""
    REOPENED = "reopened"
    """It came back within the cool-down: the same alert, of which nobody is told again."""
    RESOLVED = "resolved"


TOLD = frozenset({Happened.OPENED, Happened.AGAIN, Happened.RESOLVED})
"""What is told."""


class Change(NamedTuple):
    """What happened to an alert, and how the alert is since."""

    what: Happened
    alert: Alert

    @property
    def is_told(self) -> bool:
        """Tell whether it is to be told: that something is over only where it was told that it is there."""
        return self.what in TOLD and self.alert.notified_at is not None


class Judged(NamedTuple):
    """The alerts as they are now, where anything of them is new, and what happened to them."""

    alerts: tuple[Alert, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRules:
    """When an alert is told again."""

    cool_down: timedelta = COOL_DOWN


def judge(known: Iterable[Alert], heard: Heard, now: datetime, rules: AlertRules, *, first: bool) -> Judged:
    """Return what an event makes of the alerts of its source.

    Args:
        known: the last alert of each subject, resolved or not.
        heard: what the event says.
        now: the ledger's clock.
        rules: when an alert is told again.
        first: the source was never observed before.
    """
    last = {alert.subject: alert for alert in known}
    alerts: list[Alert] = []
    changes: list[Change] = []
    for subject, finding in heard.found.items():
        quiet = (first and heard.observation) or subject.what is Trouble.UNOBSERVED
        alert, what = _seen(last.get(subject), subject, finding, now, rules, quiet=quiet)
        alerts.append(alert)
        if what is not None:
            changes.append(Change(what, alert))
    for alert in last.values():
        if alert.is_open and alert.subject.what in heard.speaks_of and alert.subject not in heard.found:
            over = replace(alert, resolved_at=now)
            alerts.append(over)
            changes.append(Change(Happened.RESOLVED, over))
    return Judged(tuple(alerts), tuple(changes))


def _seen(
    last: Alert | None, subject: Subject, finding: Finding, now: datetime, rules: AlertRules, *, quiet: bool
) -> tuple[Alert, Happened | None]:
    """Return the alert of a subject that was found, and what happened to it."""
    jobs, sentence = finding
    if last is None or _is_past(last, now, rules):
        alert = Alert(id=uuid.uuid4().hex, subject=subject, opened_at=now, seen_at=now, jobs=jobs, sentence=sentence)
        return (alert, Happened.FOUND) if quiet else (_notified(alert, now), Happened.OPENED)
    alert = replace(last, seen_at=now, jobs=jobs, sentence=sentence, resolved_at=None)
    if last.notified_at is None:
        return _notified(alert, now), Happened.OPENED
    if now - last.notified_at >= rules.cool_down or _has_grown(last.notified_jobs, jobs):
        return _notified(alert, now), Happened.AGAIN
    return alert, None if last.is_open else Happened.REOPENED


def _is_past(alert: Alert, now: datetime, rules: AlertRules) -> bool:
    """Tell whether an alert is over for good, so that what is found now is another one.

    A brake doesn't come and go by itself: a person ended it, and must hear that it holds again.
    """
    if alert.resolved_at is None:
        return False
    if alert.subject.what is Trouble.BRAKE or alert.notified_at is None:
        return True
    return now - alert.resolved_at >= rules.cool_down


def _notified(alert: Alert, now: datetime) -> Alert:
    return replace(alert, notified_at=now, notified_jobs=alert.jobs)


def _has_grown(before: int, jobs: int) -> bool:
    """Tell whether it has grown by much: from one job to two is no news."""
    return jobs >= _MANY_TIMES * before and jobs >= before + _MANY_MORE


# What is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a channel is told in one message, under an id that stays the same however often it is tried."""

    id: str
    changes: tuple[Change, ...]
    at: datetime
    """When the first of it happened."""
    is_test: bool = False

    @property
    def is_digest(self) -> bool:
        """Tell whether it is of several alerts."""
        return len(self.changes) > 1


class Pending(NamedTuple):
    """A change that a channel is to be told, as the outbox has it."""

    id: int
    change: Change
    delivery: str | None
    """The message it was tried to tell in; None where it wasn't yet."""


class Choice(NamedTuple):
    """What of the pending changes is told next, in one message, and what isn't to be told any more."""

    chosen: tuple[Pending, ...]
    stale: tuple[Pending, ...]


Tellings = Mapping[str, Sequence[tuple[int, Happened]]]
"""What a channel was told of each alert, as far as it may have arrived: in order, each under its id in the outbox."""


def choose(pending: Sequence[Pending], still_open: AbstractSet[str], told: Tellings) -> Choice:
    """Return what a channel is told next, as things are now and not as they were when the change happened.

    Args:
        pending: what is due, the oldest first.
        still_open: the ids of those alerts that are.
        told: what the channel was told before.
    """
    true: list[Pending] = []
    stale: list[Pending] = []
    begun: set[str] = set()
    for each in pending:
        news = _is_news(each, still_open, told) and each.change.alert.id not in begun
        begun.add(each.change.alert.id if news else "")
        (true if news else stale).append(each)
    if not true:
        return Choice((), tuple(stale))
    if true[0].delivery is not None:
        return Choice(tuple(each for each in true if each.delivery == true[0].delivery), tuple(stale))
    fresh = tuple(each for each in true if each.delivery is None)
    return Choice(fresh if len(fresh) >= DIGEST_FROM else fresh[:1], tuple(stale))


def _is_news(pending: Pending, still_open: AbstractSet[str], told: Tellings) -> bool:
    """Tell whether a change is still news to a channel: what is over, and it was never told of, is none."""
    what, alert = pending.change
    if what is not Happened.RESOLVED:
        return alert.id in still_open
    before = [each for at, each in told.get(alert.id, ()) if at < pending.id]
    return alert.id not in still_open and bool(before) and before[-1] is not Happened.RESOLVED


def retry_after(attempts: int, asked: timedelta | None, jitter: float) -> timedelta:
    """Return how long a channel is left alone after so many attempts: twice as long each time, or as it asked.

    Args:
        attempts: how many there were, this one included.
        asked: how long the receiver wants to be left alone.
        jitter: from 0 to 1, so that several messages don't meet.
    """
    doubled: int = 2 ** min(attempts - 1, _ENOUGH_DOUBLINGS)
    wait = min(_SHORTEST_WAIT * doubled, _LONGEST_WAIT) * (1 + jitter / 4)
    return wait if asked is None else min(max(wait, asked), _LONGEST_ASKED)


_SHORTEST_WAIT = timedelta(seconds=10)
_ENOUGH_DOUBLINGS = 20
_LONGEST_WAIT = timedelta(minutes=30)
_LONGEST_ASKED = timedelta(hours=2)


def sample(now: datetime) -> Delivery:
    """Return what a channel is told to try it."""
    alert = Alert(
        id=uuid.uuid4().hex,
        subject=Subject("main", "default", Reason.NEVER_CLAIMED),
        opened_at=now,
        seen_at=now,
        jobs=3,
        sentence="This is a test. 3 jobs of queue 'default' of source 'main' are stuck, it would say.",
        notified_at=now,
        notified_jobs=3,
    )
    return Delivery(id=uuid.uuid4().hex, changes=(Change(Happened.OPENED, alert),), at=now, is_test=True)

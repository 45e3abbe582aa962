"""What every use case works on."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta

from unstick.domain.brake import Unattended
from unstick.domain.doubted_word import DoubtedWord
from unstick.domain.plan import PLAN_LIFETIME
from unstick.domain.policy import Policy
from unstick.domain.redaction import SECRET_KEYS
from unstick.domain.retention import Retention
from unstick.ports import (
    Alerts,
    Brakes,
    Credentials,
    EventLog,
    JobHistory,
    JobSource,
    Leaders,
    Ledger,
    Listener,
    Looks,
    Passwords,
    Plans,
    Pruner,
    Records,
    SignInFailures,
    Snoozes,
    StoryReader,
    Users,
    Watches,
    Witness,
)


async def _none() -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Planning:
    """Where a source's plans are kept, and what makes them good."""

    plans: Plans
    key: Callable[[], bytes]
    """Returns what they are signed with; raises `ConfigurationError` where there is no secret to derive it from."""
    mapping: str = ""
    """Names the mapping in force: a plan made by another one would compare the wrong columns."""
    lifetime: timedelta = PLAN_LIFETIME


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who gets in, as a ledger knows it."""

    credentials: Credentials
    users: Users
    failures: SignInFailures
    passwords: Passwords


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A source with the ledger its changes are recorded in and the policy in force for it."""

    source: JobSource
    ledger: Ledger
    policy: Policy
    brakes: Brakes | None = None
    """Where the brake is kept; without it nothing can be swept unattended."""
    unattended: Unattended = field(default_factory=Unattended)
    looks: Looks | None = None
    """Where it is kept how often jobs were found stuck; without it no policy can ask for more than one look."""
    history: JobHistory | None = None
    """What the source's finished jobs tell; None where it keeps none."""
    snoozes: Snoozes | None = None
    """Where snoozes are kept; without it no job can be snoozed."""
    story_readers: tuple[StoryReader, ...] = ()
    """Who is asked for the story of a job, besides its row."""
    planning: Planning | None = None
    """Without it no plan can be made or applied."""
    unmapped_words: Callable[[], Awaitable[tuple[str, ...]]] = _none
    """Names words of open jobs that the source's mapping gives no meaning, so that no look sees those jobs."""
    doubted_words: Callable[[], Awaitable[tuple[DoubtedWord, ...]]] = _none
    """Names words of the source's mapping that no job holds and that its table contradicts."""
    witnesses: tuple[Witness, ...] = ()
    """Who is asked whether a worker still has a job."""
    leaders: Leaders | None = None
    """Which replica sweeps the source; without it none does by itself."""
    watches: Watches | None = None
    """How the watch over it goes; without it nobody can tell whether it is kept."""
    alerts: Alerts | None = None
    """Where alerts are kept, and what channels are still to be told; without it none is raised."""
    pruner: Pruner | None = None
    retention: Retention = field(default_factory=Retention)
    event_log: EventLog | None = None
    """Where events are kept for the stream of them; without it nobody who comes later can read them."""
    access: Access | None = None
    """Who gets in, if this source's ledger is the one that says so."""
    records: Records | None = None
    """Where the record is read back; without it nobody can look at the audit log."""
    secret_keys: tuple[str, ...] = SECRET_KEYS
    """Globs of the keys in payloads whose values are never shown."""
    listeners: tuple[Listener, ...] = ()
    """Who is told what each stage did."""


OpenWatched = Callable[[], AbstractAsyncContextManager[Watched]]
"""Opens a source for one use: in a service the same each time, in a host app on a session of its own."""

"""What the pipeline needs from the world."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from unstick.domain.access import Credential, CredentialKind, NewCredential, Role, Secret, User
from unstick.domain.aftermath import End, Finished, LateCounts, LateFinish, LateRuns, Recovered
from unstick.domain.alert import Alert, AlertRules, Change, Delivery, Heard
from unstick.domain.audit import AuditEntry
from unstick.domain.brake import Brake, Pass
from unstick.domain.events import EventRecord, Observed, PipelineEvent, QueueState
from unstick.domain.evidence import Evidence
from unstick.domain.health import WatchRecord
from unstick.domain.history import Durations, Replayed
from unstick.domain.job import Job, JobClass, JobId, JobState
from unstick.domain.leadership import Leadership
from unstick.domain.plan import KeptPage, Plan, PlanDraft
from unstick.domain.policy import Ruling
from unstick.domain.queue import NOT_TOLD, Flows, Workers
from unstick.domain.record import EntryFilter, EntryPage, Recorded, Span
from unstick.domain.recovery import Action, Batch, BatchResult, Intent, Outcome, Recovery, Ruled
from unstick.domain.retention import Retention
from unstick.domain.sighting import Sighted, Sighting, Stuck
from unstick.domain.sign_in_failures import SignInTry
from unstick.domain.snooze import Snooze
from unstick.domain.story import Event, JobRow
from unstick.domain.suspect import GroupedSuspects, Look, Mark, Page, Position, Stretch, StuckCounts
from unstick.domain.undo import UndoBatch, UndoPage, UndoResult
from unstick.domain.work import Beat, ClaimedJob, WorkerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a source can do; what it can't, it refuses."""

    heartbeats: bool
    attempts: bool
    mark_failed: bool
    retry: bool
    records: bool
    """A batch's records commit together with it; else intents are recorded before, and settled after."""
    rulings: bool
    """Suspects that age alone convicts can be recovered without being read one by one."""
    reads_beside_writes: bool
    """The next page may be read while a batch is written."""
    read_only: str | None = None
    """Why nothing may be changed, as far as is known by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Figures over the newest jobs of a source; None where the source has no such column."""

    window_jobs: int
    """How many jobs the figures are over."""
    window_basis: str
    """How those jobs were chosen, in words."""
    oldest_at: datetime | None
    newest_at: datetime | None
    jobs_by_state: Mapping[JobState, int]
    average_duration: timedelta | None
    longest_duration: timedelta | None
    tokens: int | None
    cost: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenClasses:
    """The kinds and queues of the jobs that are not over."""

    found: frozenset[JobClass]
    complete: bool = True
    """Otherwise there may be others among the jobs that were not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenJobs:
    """The jobs that are not over, exactly."""

    by_queue: Mapping[QueueState, int]
    queued_since: datetime | None
    """Since when the longest waiting queued job could have been claimed."""
    running_since: datetime | None
    """The oldest last sign of life of a running job."""
    workers: Workers = NOT_TOLD
    """Who lives that could take those that wait."""

    @property
    def by_state(self) -> Mapping[JobState, int]:
        """The same jobs by their state alone."""
        found: Counter[JobState] = Counter()
        for (_, state), number in self.by_queue.items():
            found[state] += number
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryCounts:
    """Recoveries of one source within a window."""

    since: datetime
    by_outcome: Mapping[Outcome, int]
    by_action: Mapping[Action, int]
    """Applied ones only."""
    by_reason: Mapping[str, int]
    """Applied ones only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUpSpan:
    """Which recoveries a follow-up may look at."""

    since: datetime
    first: int
    """The oldest recovery since then."""
    place: int | None
    """Down to which recovery the round under way has come; None where one begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredPage:
    """One bounded page of recovered jobs."""

    jobs: tuple[Recovered, ...]
    """Those with no known end."""
    number: int
    """How many there were, with those whose end is known."""
    last: int | None
    """The recovery the next page goes on from, downwards; None where there was none."""


class JobSource(Protocol):
    """Jobs that somebody else's application owns.

    Every method raises `SourceUnavailableError` where the system behind it doesn't answer.
    """

    @property
    def name(self) -> str:
        """The source's name in configuration, ledger and reports."""

    @property
    def capabilities(self) -> Capabilities:
        """What this source can do."""

    async def clock(self) -> datetime:
        """Return the source's own time, aware UTC: the only clock that judges its jobs."""

    async def up_since(self) -> datetime | None:
        """Tell since when the system has been up without a break, by its own clock; None where it can't."""

    async def open_classes(self, most: int | None = None) -> OpenClasses:
        """Tell the kinds and queues of the jobs that are not over; with `most`, of so many of these jobs."""

    async def flows(self, look: Look) -> Flows:
        """Tell how queues move, as far as that is known at a bounded cost."""

    async def find(self, job_id: JobId) -> JobRow | None:
        """Return a job as it stands, whatever its state; None where there is none.

        The id may be text, as a person gave it; what is returned bears the source's own.
        """

    async def count_suspects(self, look: Look) -> StuckCounts:
        """Count the suspects, exactly where that can be had at a bounded cost."""

    async def suspects_by_queue(self, look: Look) -> GroupedSuspects:
        """Count the suspects by queue, exactly where that can be had at a bounded cost."""

    async def list_suspects(
        self, look: Look, state: JobState, *, limit: int, after: Position | None
    ) -> tuple[Job, ...]:
        """Return at most `limit` jobs that are suspects in a state, oldest sign of life first, after a position."""

    async def stretch(
        self, look: Look, state: JobState, *, size: int, after: Mark | None = None, newest_first: bool = False
    ) -> Stretch:
        """Return at most `size` jobs that are suspects in a state, those that began first or last, after a mark.

        The cost is theirs alone, however many others there are, where an index leads to open jobs by their beginning.
        """

    async def describe(self, look: Look, job_ids: Sequence[JobId]) -> Mapping[JobId, Job]:
        """Read jobs by their ids, in whatever state they are; one that can't be read or isn't there is left out."""

    def suspects(self, look: Look) -> AsyncIterator[Page]:
        """Yield every suspect once, in bounded pages by ascending id."""

    async def recover(self, batch: Batch) -> BatchResult:
        """Carry out a batch by compare-and-set; where `capabilities.records`, with its records in one transaction.

        All of a batch's writes commit together or not at all. A row that the database refuses doesn't stop the
        others.
        """

    def recover_by_rule(self, ruling: Ruling, look: Look, operation_id: int) -> AsyncIterator[Ruled]:
        """Carry out one decision for all suspects of a state, and yield what came of each committed batch.

        The ruling is applied to each row as it stands when it is written. Rows that somebody holds or that differ
        from the many, and batches that the database refuses, are left for `suspects` and `recover`, and a source may
        leave them all where they are few. Only where `capabilities.rulings`.
        """

    async def intend(self, batch: Batch) -> Sequence[Intent]:
        """Tell what carrying out a batch would do, without doing it; jobs that changed since the look are left out.

        Only where not `capabilities.records`.
        """

    async def images(self, intents: Sequence[Intent]) -> Mapping[JobId, str]:
        """Return what stands now where these intents would write, as JSON objects; jobs that are gone are left out.

        Only where not `capabilities.records`.
        """

    async def undo(self, batch: UndoBatch) -> UndoResult:
        """Put jobs back as recoveries found them, where they still are exactly as those left them.

        By compare-and-set, in one transaction, with its records where `capabilities.records`; a row that the database
        refuses doesn't stop the others. A fencing token goes back only to the attempt that gets its job back.
        """

    async def intend_undo(self, batch: UndoBatch) -> tuple[Sequence[Intent], Mapping[JobId, str]]:
        """Tell what undoing a batch would do, without doing it, and why each other job would be left alone."""

    async def finished_among(self, recovered: Sequence[Recovered]) -> Sequence[Finished]:
        """Return which of these recovered jobs are succeeded now, each with what tells its attempt from another.

        A job that is named twice is told twice; one whose row can't be read is left out.
        """

    async def open_jobs(self) -> OpenJobs:
        """Count the jobs that are not over; the cost follows their number only."""

    async def usage(self) -> Usage:
        """Sum up the newest jobs, at most a fixed number of them."""


class Witness(Protocol):
    """Whoever may know whether a worker still has a job: a table of workers, a process, an endpoint."""

    @property
    def name(self) -> str:
        """What it is called in findings."""

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        """Say of running jobs whether a worker still has them; a job it knows nothing of is left out.

        `now` is the source's time. What can't be found out is `UNKNOWN`, with the reason as its value. It may raise,
        and it may be cancelled at any time.
        """


class Sightings(Protocol):
    """What was seen of suspects at earlier looks: the memory of jobs whose source has none."""

    async def note(self, source: str, jobs: Sequence[Sighted], now: datetime) -> Mapping[JobId, Sighting]:
        """Write down how jobs look now, and return what is known of each with this look in it.

        Looks a moment apart are one, so that many who look at once don't make a job seem to stand still.
        """


class Looks(Protocol):
    """At how many unattended passes in a row jobs were found stuck."""

    async def note(self, source: str, jobs: Sequence[Stuck], this: Pass) -> Mapping[JobId, int]:
        """Write down who was found stuck at a pass, and return at how many in a row each was, this one included.

        Passes a moment apart are one, so that several processes that sweep at once don't make a row of them.
        """


class JobHistory(Protocol):
    """What a source's finished jobs tell of the past, over bounded samples of them."""

    async def durations(self) -> Durations:
        """Measure how long the newest jobs that succeeded took."""

    async def replay(
        self, window: timedelta, *, running_after: timedelta | None, queued_after: timedelta | None
    ) -> Replayed:
        """Count those of the newest jobs that ended within the window, and those that were past a threshold before.

        A job that waited too long is counted as queued only, for it would never have run.
        """


class JobQueue(Protocol):
    """What a worker needs from the system its jobs live in. Every end of a job is conditional on its fence.

    Every method raises `SourceUnavailableError` where the system behind it doesn't answer.
    """

    async def join(self, worker: WorkerIdentity, lease: timedelta) -> None:
        """Begin to vouch for a worker, for the length of a lease."""

    async def leave(self, worker: WorkerIdentity) -> None:
        """Cease to vouch for a worker; that it was there stays known for a while."""

    async def claim(
        self, worker: WorkerIdentity, *, limit: int, kinds: Sequence[str] | None = None, job_id: JobId | None = None
    ) -> Sequence[ClaimedJob]:
        """Claim at most `limit` queued jobs that are due, of these kinds, or only the one of this id."""

    async def beat(self, worker: WorkerIdentity, lease: timedelta, beats: Sequence[Beat]) -> frozenset[JobId]:
        """Say that a worker and these jobs of its live, and return which of the jobs it still holds.

        A worker that was ceased to be vouched for meanwhile is vouched for again: its jobs' own rows say who has them.
        """

    async def disown(self, jobs: Sequence[ClaimedJob]) -> None:
        """Cease to vouch for jobs that their worker runs no longer: what their rows say decides about them."""

    async def finish(self, job: ClaimedJob, values: Mapping[str, object]) -> bool:
        """End a job as succeeded, with its results by column name; False and recorded as late if it was taken."""

    async def fail(self, job: ClaimedJob, error: str) -> bool:
        """End a job as failed; False and recorded as late if it was taken."""

    async def requeue(self, job: ClaimedJob, wait: timedelta, *, error: str | None, counted: bool) -> bool:
        """Queue a job again, as a new attempt if `counted`; False if it was taken."""


class AftermathLedger(Protocol):
    """The record of what became of recovered jobs."""

    async def follow_up_span(self, source: str, window: timedelta) -> FollowUpSpan | None:
        """Return which of a source's recoveries lie within the window, by the ledger's clock; None if none does."""

    async def recovered(
        self, source: str, span: FollowUpSpan, *, before: int | None, limit: int, besides: int | None
    ) -> RecoveredPage:
        """Return jobs whose recovery was applied within the span, newest first, of recoveries older than `before`.

        A page ends with the recovery that brings it to `limit` jobs. Those of the operation `besides` are left out.
        """

    async def keep_ends(self, source: str, ends: Sequence[End]) -> tuple[int, int]:
        """Write ends that are not on record yet, and return how many of those are late finishes, and how many aren't.

        A finish is recorded once, whoever else finds it at the same time and after however many recoveries it came:
        what is found after the newest of them counts.
        """

    async def keep_place(self, source: str, recovery_id: int | None) -> None:
        """Write down to which recovery a round has come, None where it is over."""

    async def late_counts(self, source: str, window: timedelta) -> LateCounts:
        """Count the late finishes of a source within the window, by the ledger's clock."""

    async def late_finishes(self, source: str, limit: int) -> Sequence[LateFinish]:
        """Return the newest late finishes of a source, newest first."""

    async def late_runs(self, source: str, window: timedelta) -> Sequence[LateRuns]:
        """Return the late finishes within the window that had succeeded, by kind."""


class Ledger(AftermathLedger, Protocol):
    """Unstick's own record."""

    async def append(self, entry: AuditEntry) -> int:
        """Write one entry of its own and return its id."""

    async def count_read(self, entry: AuditEntry, times: int = 1) -> None:
        """Write a call that changed nothing, made so many times; the same one within a minute shares its row."""

    async def record(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Write what came of decisions that changed nothing."""

    async def intend(self, source: str, operation_id: int, intents: Sequence[Intent]) -> None:
        """Write what is about to be done; it is committed when this returns."""

    async def settle(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Write what came of intents, as who carried them out knows it, and strike them.

        Where somebody found out about one meanwhile, this is written all the same: the last word is the right one.
        """

    async def find_out(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Write what seems to have come of intents that nobody settled, and strike them; those struck are left."""

    async def unsettled(self, source: str, older_than: timedelta) -> Mapping[int, Sequence[Intent]]:
        """Return intents by operation that nobody has settled for so long, by the ledger's clock."""

    async def spent(
        self, source: str, job_ids: Sequence[JobId], since: datetime, *, before_success: bool = False
    ) -> Mapping[JobId, int]:
        """Return how many retries of each job were applied since then; a job that had none is left out.

        Those before a job's last recorded success count only with `before_success`.
        """

    async def operation(self, operation_id: int) -> AuditEntry | None:
        """Return the entry that began an operation, None where there is none."""

    async def undoable(
        self, source: str, operation_id: int, *, after: int = 0, job_id: JobId | None = None
    ) -> UndoPage:
        """Return a page of the applied recoveries of an operation, which is no undo, by ascending record.

        Those of one job only, where one is named.
        """

    async def history(self, source: str, job_id: JobId) -> Sequence[tuple[int, bool]]:
        """Return the operations that recovered a job, the latest first, and whether that was undone."""

    async def recoveries(self, source: str, window: timedelta) -> RecoveryCounts:
        """Count the recoveries of a source within the window, by the ledger's clock."""


class Records(Protocol):
    """Unstick's own record, read back: who did what, and what came of it over time."""

    async def entries(self, wanted: EntryFilter, *, before: int | None, limit: int) -> EntryPage:
        """Return the newest entries of the audit log that are wanted, of those older than the entry `before`.

        How many are looked through is bounded, however few are wanted.
        """

    async def operation(self, operation_id: int) -> Sequence[Recorded]:
        """Return the entries that began and ended an operation, the oldest first."""

    async def over_time(self, source: str, window: timedelta, spans: int) -> Sequence[Span]:
        """Count recoveries and late finishes of a source in so many spans of the window, by the ledger's clock."""


class Brakes(Protocol):
    """What unattended sweeps must remember of each source, whichever process runs the next one."""

    async def find(self, source: str) -> Brake | None:
        """Return the brake of a source, released or not; None where there is none."""

    async def pull(self, brake: Brake) -> Brake:
        """Hold a source, unless it is held already, and return the brake that holds."""

    async def release(self, source: str, by: str) -> Brake | None:
        """Release the brake of a source, and return it; None where none was held."""

    async def strike(self, brake: Brake) -> None:
        """Forget a released brake, once what it let through has been done."""

    async def last_pass(self, source: str) -> Pass | None:
        """Return the last unattended pass over a source; None where there was none."""

    async def note_pass(self, source: str, this: Pass) -> None:
        """Keep a pass as the last one."""


class Snoozes(Protocol):
    """The jobs that a person wants to be left alone for a time."""

    async def live(self, source: str, now: datetime) -> Sequence[Snooze]:
        """Return the snoozes of a source that haven't ended by then, those that end first before others."""

    async def keep(self, snooze: Snooze, entry: AuditEntry, *, most: int) -> bool:
        """Keep a snooze in place of the job's former one, and write the entry with it.

        False, and nothing is kept or written, where that many other jobs of the source are snoozed.
        """

    async def strike(self, source: str, job_id: JobId, entry: AuditEntry) -> Snooze | None:
        """End a job's snooze, write the entry with it, and return what was struck; None where there was none."""


class StoryReader(Protocol):
    """Whoever knows of things that happened to single jobs: a record of ours, a registry, a log."""

    async def events(self, source: str, job_id: JobId, limit: int) -> Sequence[Event]:
        """Return what happened to a job, at most that many events, the newest where there are more."""


class Plans(Protocol):
    """What was planned, kept until it is applied or expired, and a while longer."""

    async def begin(self, plan: PlanDraft, lifetime: timedelta) -> Plan:
        """Begin to keep a plan, which expires after its lifetime by the ledger's clock; it has no signature yet."""

    async def add(self, plan_id: str, page: KeptPage) -> None:
        """Keep a page of a plan that is being made."""

    async def finish(self, plan: Plan) -> None:
        """Keep how many jobs and pages a plan has come to, and its signature."""

    async def find(self, plan_id: str) -> Plan | None:
        """Return a plan's head, None where there is none of that id."""

    async def page(self, plan_id: str, number: int) -> KeptPage | None:
        """Return a page of a plan, by its number from 0."""

    async def claim(self, plan: Plan, entry: AuditEntry) -> int | None:
        """Begin the operation that applies a plan, and return its id; None where it was applied or has expired.

        The claim and the entry that begins the operation are one transaction: of several claims one is granted.
        """

    async def has_ended(self, operation_id: int) -> bool:
        """Tell whether the end of an operation that applied a plan is in the audit log."""

    async def strike(self, older_than: timedelta, most: int) -> int:
        """Forget at most so many of the plans that expired so long ago, and return how many that were."""


class Leaders(Protocol):
    """The lease of each source, by the ledger's clock: who of several replicas sweeps it."""

    async def claim(self, source: str, holder: str, lasting: timedelta) -> Leadership | None:
        """Take a source's lease if nobody holds it, or renew one's own; None where another holds it.

        Whoever takes it begins a new term, whoever renews it goes on with theirs.
        """

    async def release(self, leadership: Leadership) -> None:
        """Give a lease back, so that another needn't wait until it runs out; nothing if it is lost already."""


class Watches(Protocol):
    """How the watch over each source goes, whichever replica keeps it."""

    async def find(self, source: str) -> WatchRecord | None:
        """Return what is known; None where the source was never watched."""

    async def note_observed(self, observed: Observed) -> None:
        """Keep an observation as the last one."""

    async def note_swept(self, source: str) -> None:
        """Keep that an unattended sweep came to its end now."""

    async def note_problem(self, source: str, problem: str) -> None:
        """Keep why an observation or a sweep came to none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A message to a channel that one courier has taken, for so long as its claim lasts, to deliver it."""

    channel: str
    holder: str
    delivery: Delivery
    attempts: int
    """How many there were, this one included."""
    told_before: bool
    """An earlier attempt may have arrived, though nobody knows."""


class Alerts(Protocol):
    """The alerts of each source, and what channels are still to be told of them, by the ledger's clock."""

    async def take_in(self, heard: Heard, rules: AlertRules, channels: Sequence[str]) -> Sequence[Change]:
        """Keep what an event makes of a source's alerts, and that each channel is to be told of it: all or nothing.

        Of several that take in the same, one changes something.
        """

    async def standing(self, source: str) -> Sequence[Alert]:
        """Return the open alerts of a source, the oldest first."""

    async def claim(self, channel: str, sources: Sequence[str], holder: str, lasting: timedelta) -> Claim | None:
        """Take the next message to a channel that is due; None where there is none, or another delivers to it now.

        What isn't so any more is struck, and never told. Who doesn't say what came of it until the claim ends may have
        delivered it or not: it is delivered again, under the same id.
        """

    async def delivered(self, claim: Claim) -> None:
        """Strike a message that has arrived."""

    async def failed(
        self, claim: Claim, wait: timedelta, problem: str, *, may_have_arrived: bool, others_wait: bool
    ) -> bool:
        """Have a message tried again after a while, and the channel's others if they would fail, too.

        True where it was given up instead, after `GIVE_UP_AFTER`, which is written to the audit log.
        """

    async def tidy(self, sources: Sequence[str]) -> None:
        """Give up what no courier has taken for long, and forget what was told long ago."""


class Channel(Protocol):
    """A way to tell somebody what happened to alerts."""

    @property
    def name(self) -> str:
        """What it is called in the settings."""

    async def send(self, delivery: Delivery) -> None:
        """Tell it.

        Raises:
            NotDeliveredError: it didn't arrive, or nobody knows whether it did.
        """


class EventLog(Protocol):
    """The events of all sources of a ledger, kept for a while: every replica, and who comes later, can read them."""

    async def append(self, source: str, kind: str, told: Mapping[str, object]) -> None:
        """Keep an event."""

    async def last(self, source: str) -> int:
        """Return the id of the newest event of a source, 0 where there is none."""

    async def after(self, source: str, event_id: int, limit: int) -> tuple[Sequence[EventRecord], int]:
        """Return the next events of a source, in the order of their ids, and the id to go on from.

        Of all events after the given one that many are read, whosever they are, and none before which another can come.
        """


class Pruner(Protocol):
    """Whoever strikes old records."""

    def prune(self, retention: Retention) -> AsyncIterator[tuple[str, int]]:
        """Strike all that is older than is to be kept, by the ledger's clock; yield each batch's table and number."""


class Credentials(Protocol):
    """Sessions, tokens and sign-in links, of which only the digest of the secret is kept, by the ledger's clock."""

    async def keep(self, new: NewCredential, entry: AuditEntry) -> Credential | None:
        """Keep a credential, and write the entry with it; None where what opened it is there no more."""

    async def present(self, kind: CredentialKind, secret: Secret) -> Credential | None:
        """Return the credential of a kind that a secret opens, and note that it was used; None if none that lives."""

    async def spend(self, secret: Secret, session: NewCredential, entry: AuditEntry) -> Credential | None:
        """Strike the sign-in link that a secret opens, and keep a session in its stead, and the entry.

        The session is its principal's. None, and nothing is kept or written, where there is no such link, or none any
        more: of several who spend one at the same time one does.
        """

    async def strike(
        self, kind: CredentialKind, credential_id: str, entry: AuditEntry, *, of: str | None = None
    ) -> bool:
        """Strike a credential and the sessions it opened, and write the entry.

        False, and nothing is written, where there is none, or it doesn't stand for the name it has to be of.
        """

    async def strike_all(self, kind: CredentialKind, name: str, entry: AuditEntry) -> int:
        """Strike all of a kind that stand for a name, write the entry with their number, and return it."""

    async def living(self, kind: CredentialKind, limit: int, *, of: str | None = None) -> Sequence[Credential]:
        """Return the credentials of a kind, or of a name, that haven't expired: the newest first, so many at most."""


class Users(Protocol):
    """Those who sign in by a password, of which only a hash is kept."""

    async def add(self, name: str, role: Role, password_hash: str, entry: AuditEntry) -> bool:
        """Keep a user, made by who the entry says, and write the entry; False where the name is taken."""

    async def find(self, name: str) -> tuple[User, str] | None:
        """Return a user and the hash of the password, None where there is none of that name."""

    async def remove(self, name: str, entry: AuditEntry) -> bool:
        """Strike a user and all that opens for that name, and write the entry; False where there is none."""

    async def all(self) -> Sequence[User]:
        """Return the users by name."""


class SignInFailures(Protocol):
    """How often signing in failed lately, by the ledger's clock."""

    async def begin(self, tried: SignInTry) -> timedelta:
        """Count a try as failed until it has succeeded, or return how long it has to wait, and count nothing."""

    async def succeed(self, tried: SignInTry) -> None:
        """Take back that a try was counted, and forget what failed before it under its name."""


class Passwords(Protocol):
    """How passwords are kept and compared."""

    async def hash(self, password: str) -> str:
        """Return what is kept of a password."""

    async def matches(self, password: str, kept: str | None) -> bool:
        """Tell whether a password is the one that was kept; without one to compare it takes as long, and isn't."""


class Listener(Protocol):
    """Whoever wants to know what each stage of the pipeline did."""

    async def hear(self, event: PipelineEvent) -> None:
        """Take note; what takes long is put off, for a sweep waits."""

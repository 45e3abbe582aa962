"""Unstick's own tables. `migrations/` makes them; a test holds the two together."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

metadata = sa.MetaData()
jobs_metadata = sa.MetaData()


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python, to the microsecond on every database."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Keep microseconds where the default drops them, and the zone where there is one."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime(timezone=dialect.name == "postgresql"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store UTC."""
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc if dialect.name == "postgresql" else utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read UTC."""
        del dialect
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


Key = sa.BigInteger().with_variant(sa.Integer, "sqlite")

JobKey = sa.Text().with_variant(mysql.VARCHAR(1024, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
"""Any job's id as text, compared to the letter."""

WorkerName = sa.String(255).with_variant(
    mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
"""A worker's name, compared to the letter."""

JobMark = sa.String(255).with_variant(
    mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
"""What a job shows of itself, compared to the letter."""
KindName = WorkerName
"""A job's kind, cut to that length and told apart to the letter."""

LongText = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
"""Text of any length: MariaDB's and MySQL's TEXT ends at 64 KiB."""

audit = sa.Table(
    "unstick_audit",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("operation_id", Key, nullable=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("last_at", UtcDateTime, nullable=False),
    sa.Column("repeats", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=True, unique=True),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("role", sa.String(32), nullable=True),
    sa.Column("call", sa.String(64), nullable=False),
    sa.Column("parameters", sa.JSON, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("result", sa.JSON, nullable=False),
    sa.Column("source", sa.String(63), nullable=True),
    sa.Column("job_id", JobKey, nullable=True),
    sa.Index("unstick_audit_at", "at"),
    sa.Index("unstick_audit_job", "source", "job_id", mysql_length={"job_id": 255}),
)
"""Every call, refused ones too, and each operation's beginning and end; rows are only ever added, and the
count of identical reads within a minute raised. `job_id` is there where a call was about one job alone."""

recoveries = sa.Table(
    "unstick_recoveries",
    metadata,
    sa.Column("id", Key, primary_key=True),
    # No foreign key to the audit entry: checking it costs a look-up for every job of a batch.
    sa.Column("operation_id", Key, nullable=False),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("job_id", JobKey, nullable=True),
    sa.Column("jobs", LongText, nullable=True),
    sa.Column("job_count", sa.Integer, nullable=False, server_default="1"),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("pre_image", LongText, nullable=True),
    sa.Column("post_image", LongText, nullable=True),
    sa.Column("undoes", Key, nullable=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Index("unstick_recoveries_job", "source", "job_id", mysql_length={"job_id": 255}),
    sa.Index("unstick_recoveries_operation", "operation_id"),
    # Rows come in the order of time: a block range index costs a batch nothing.
    sa.Index("unstick_recoveries_at", "at", postgresql_using="brin"),
)
"""What came of each decision: the per-job part of the audit log, with what we overwrote and what we wrote.

A row is of one job (`job_id`), or of many alike to which the same was done by one ruling: then `jobs` is a JSON array
of `[id, sign of life in UTC]`, and `{since}` in `detail` and `post_image` stands for the latter.
`unstick_job_recoveries` has them job by job. An undo is a row with the action `undo`; `undoes` is the row it took back.
"""

job_recoveries = sa.Table(
    "unstick_job_recoveries",
    sa.MetaData(),
    sa.Column("recovery_id", Key),
    sa.Column("operation_id", Key),
    sa.Column("source", sa.String(63)),
    sa.Column("job_id", JobKey),
    sa.Column("state", sa.String(16)),
    sa.Column("action", sa.String(16)),
    sa.Column("reason", sa.String(32)),
    sa.Column("outcome", sa.String(16)),
    sa.Column("detail", sa.Text),
    sa.Column("pre_image", sa.Text),
    sa.Column("post_image", sa.Text),
    sa.Column("undoes", Key),
    sa.Column("at", UtcDateTime),
)
"""A view of the recoveries with a row for each job, for whoever asks what was done to one."""

intents = sa.Table(
    "unstick_intents",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("operation_id", Key, nullable=False),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("job_id", JobKey, nullable=False),
    sa.Column("numeric_id", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("pre_image", LongText, nullable=False),
    sa.Column("post_image", LongText, nullable=False),
    sa.Column("undoes", Key, nullable=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Index("unstick_intents_source", "source", "at"),
)
"""What is about to be done to jobs in another database; a row is struck when what came of it is recorded."""

leases = sa.Table(
    "unstick_leases",
    metadata,
    sa.Column("id", WorkerName, primary_key=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("began_at", UtcDateTime, nullable=False),
    sa.Column("beat_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
)
"""Signs of life of workers: a row a process, which all its jobs point at by their `worker`."""

late_finishes = sa.Table(
    "unstick_late_finishes",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("job_id", JobKey, nullable=False),
    sa.Column("kind", KindName, nullable=True),
    sa.Column("how", sa.String(16), nullable=False),
    sa.Column("recovery_id", Key, nullable=True),
    sa.Column("worker", WorkerName, nullable=True),
    sa.Column("attempt", sa.Integer, nullable=True),
    sa.Column("ended", sa.String(16), nullable=False),
    sa.Column("ran_seconds", sa.Double, nullable=True),
    sa.Column("detail", sa.Text, nullable=True),
    sa.Column("finish", sa.String(64), nullable=True, unique=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Index("unstick_late_finishes_at", "at"),
)
"""Ends of attempts whose job had been recovered: refused by the kit, or found in the table; each once.

`finish` names a found one by what its row said, so that whoever finds it again finds it recorded.
"""

successes = sa.Table(
    "unstick_successes",
    metadata,
    sa.Column("finish", sa.String(64), primary_key=True),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("job_id", JobKey, nullable=False),
    sa.Column("recovery_id", Key, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Index("unstick_successes_job", "source", "job_id", "at", mysql_length={"job_id": 255}),
    sa.Index("unstick_successes_recovery", "recovery_id"),
)
"""Recovered jobs that were found succeeded: what was spent of their recovery budget before `at` counts no more."""

follow_ups = sa.Table(
    "unstick_follow_ups",
    metadata,
    sa.Column("source", sa.String(63), primary_key=True),
    sa.Column("recovery_id", Key, nullable=True),
    sa.Column("at", UtcDateTime, nullable=False),
)
"""Down to which recovery a source's round of follow-ups has come; null where the next one begins anew."""

snoozes = sa.Table(
    "unstick_snoozes",
    metadata,
    # A fingerprint of source and job: MariaDB's and MySQL's indexes have no room for a long id.
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("job_id", JobKey, nullable=False),
    sa.Column("numeric_id", sa.Boolean, nullable=False),
    sa.Column("until", UtcDateTime, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Index("unstick_snoozes_until", "source", "until"),
)
"""Jobs that a person wants to be left alone until then; a row a job, struck some time after it has ended."""

brakes = sa.Table(
    "unstick_brakes",
    metadata,
    sa.Column("source", sa.String(63), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("suspects", sa.Integer, nullable=False),
    sa.Column("still_open", sa.Integer, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("released_at", UtcDateTime, nullable=True),
    sa.Column("released_by", sa.String(255), nullable=True),
)
"""Sources that unattended sweeps are held from, or were until a person released them."""

passes = sa.Table(
    "unstick_passes",
    metadata,
    sa.Column("source", sa.String(63), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("back_at", UtcDateTime, nullable=True),
)
"""When each source was last passed over unattended, and since when the watch over it has had no gap."""

leaders = sa.Table(
    "unstick_leaders",
    metadata,
    sa.Column("source", sa.String(63), primary_key=True),
    sa.Column("holder", WorkerName, nullable=True),
    sa.Column("term", Key, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
)
"""Which replica sweeps each source; `holder` is null where the last one gave its lease back."""

watches = sa.Table(
    "unstick_watches",
    metadata,
    sa.Column("source", sa.String(63), primary_key=True),
    sa.Column("began_at", UtcDateTime, nullable=False),
    sa.Column("observed_at", UtcDateTime, nullable=True),
    sa.Column("observed", LongText, nullable=True),
    sa.Column("swept_at", UtcDateTime, nullable=True),
    sa.Column("problem", sa.Text, nullable=True),
)
"""How the watch over each source goes: its last observation, as JSON, when it was last swept, and what went wrong."""

events = sa.Table(
    "unstick_events",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("told", LongText, nullable=False),
    sa.Index("unstick_events_source", "source", "id"),
    sa.Index("unstick_events_at", "at"),
)
"""What each stage told its listeners, as JSON, for some days."""

sightings = sa.Table(
    "unstick_sightings",
    metadata,
    # A fingerprint of source and job: MariaDB's and MySQL's indexes have no room for a long id.
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("job_id", JobKey, nullable=False),
    sa.Column("attempt", JobMark, nullable=False),
    sa.Column("progress", JobMark, nullable=True),
    sa.Column("first_seen_at", UtcDateTime, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
    sa.Column("looks", sa.Integer, nullable=False),
    sa.Column("moved_at", UtcDateTime, nullable=True),
    sa.Column("moved_from", JobMark, nullable=True),
    sa.Index("unstick_sightings_seen", "source", "seen_at"),
)
"""How suspects looked the last time, and since when they look so; a row a job, which is forgotten when the job is no
suspect any more."""

looks = sa.Table(
    "unstick_looks",
    metadata,
    # A fingerprint of source and job: MariaDB's and MySQL's indexes have no room for a long id.
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("job_id", JobKey, nullable=False),
    sa.Column("mark", JobMark, nullable=False),
    sa.Column("looks", sa.Integer, nullable=False),
    sa.Column("counted_at", UtcDateTime, nullable=False),
    sa.Column("found_at", UtcDateTime, nullable=False),
    sa.Index("unstick_looks_found", "source", "found_at"),
)
"""At how many unattended passes in a row jobs were found stuck, where more than one is needed to act on them."""

alerts = sa.Table(
    "unstick_alerts",
    metadata,
    # A fingerprint of source, queue and what: a queue's name can be longer than an index takes.
    sa.Column("subject", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(32), nullable=False),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("queue", sa.Text, nullable=True),
    sa.Column("what", sa.String(32), nullable=False),
    sa.Column("opened_at", UtcDateTime, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
    sa.Column("jobs", sa.Integer, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("notified_at", UtcDateTime, nullable=True),
    sa.Column("notified_jobs", sa.Integer, nullable=False),
    sa.Column("resolved_at", UtcDateTime, nullable=True),
    sa.Index("unstick_alerts_source", "source"),
)
"""The last alert of each subject, open or not; `id` is another one for each time that it began."""

alert_rounds = sa.Table(
    "unstick_alert_rounds",
    metadata,
    sa.Column("source", sa.String(63), primary_key=True),
    sa.Column("observed_at", UtcDateTime, nullable=True),
)
"""When each source was last observed with an eye to alerts. Whoever changes the alerts of a source locks its row."""

notifications = sa.Table(
    "unstick_notifications",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("channel", sa.String(63), nullable=False),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("alert_id", sa.String(32), nullable=False),
    sa.Column("change", sa.String(16), nullable=False),
    sa.Column("alert", LongText, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("delivery", sa.String(32), nullable=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_try_at", UtcDateTime, nullable=False),
    sa.Column("told_at", UtcDateTime, nullable=True),
    sa.Column("done_at", UtcDateTime, nullable=True),
    sa.Column("outcome", sa.String(16), nullable=True),
    sa.Index("unstick_notifications_due", "channel", "done_at", "next_try_at"),
    sa.Index("unstick_notifications_alert", "alert_id"),
)
"""What each channel is or was to be told: a row a change and channel. `delivery` is the message it is part of,
`told_at` is when it was last sent in a way that may have arrived, and `done_at` when nobody tries any more."""

couriers = sa.Table(
    "unstick_couriers",
    metadata,
    sa.Column("channel", sa.String(63), primary_key=True),
    sa.Column("holder", WorkerName, nullable=True),
    sa.Column("expires_at", UtcDateTime, nullable=False),
)
"""Who delivers to each channel right now: one message at a time, so that all come in order."""

plans = sa.Table(
    "unstick_plans",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("source", sa.String(63), nullable=False),
    sa.Column("made_by", sa.String(255), nullable=False),
    sa.Column("made_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("terms", LongText, nullable=False),
    sa.Column("jobs", sa.Integer, nullable=False),
    sa.Column("pages", sa.Integer, nullable=False),
    sa.Column("signature", sa.String(64), nullable=True),
    sa.Column("applied_by", sa.String(255), nullable=True),
    sa.Column("applied_at", UtcDateTime, nullable=True),
    sa.Column("operation_id", Key, nullable=True),
)
"""What dry runs saw and would do, until a day after it can't be applied any more."""

plan_pages = sa.Table(
    "unstick_plan_pages",
    metadata,
    sa.Column("plan_id", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content", LongText, nullable=False),
    sa.Column("signature", sa.String(64), nullable=False),
)
"""The jobs of a plan, many a row: what was seen of each, and what is to be done to it."""

credentials = sa.Table(
    "unstick_credentials",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("name", WorkerName, nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("made_by", sa.String(255), nullable=False),
    sa.Column("made_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("used_at", UtcDateTime, nullable=True),
    sa.Column("opened_by", sa.String(16), nullable=True),
    sa.Column("address", sa.String(64), nullable=True),
    sa.Column("browser", sa.String(255), nullable=True),
    sa.Index("unstick_credentials_name", "name"),
    sa.Index("unstick_credentials_opened_by", "opened_by"),
    sa.Index("unstick_credentials_expires_at", "expires_at"),
)
"""Sessions, tokens and sign-in links: the SHA-256 of each secret, whom its bearer is taken for, and until when."""

users = sa.Table(
    "unstick_users",
    metadata,
    sa.Column("name", WorkerName, primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password_hash", sa.String(255), nullable=False),
    sa.Column("made_by", sa.String(255), nullable=False),
    sa.Column("made_at", UtcDateTime, nullable=False),
)
"""Those who sign in by a password."""

sign_in_failures = sa.Table(
    "unstick_sign_in_failures",
    metadata,
    sa.Column("subject", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("failed_at", UtcDateTime, nullable=True),
    sa.Column("succeeded_at", UtcDateTime, nullable=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Index("unstick_sign_in_failures_at", "at"),
)
"""How often signing in failed in a row, by fingerprints of addresses and names, and when it last succeeded."""

jobs = sa.Table(
    "jobs",
    jobs_metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("job_type", sa.String(255), nullable=False),
    sa.Column("idempotency_key", sa.String(255), nullable=True, unique=True),
    sa.Column("queue", sa.String(255), nullable=False, server_default="default"),
    sa.Column("status", sa.String(16), nullable=False, server_default="queued"),
    sa.Column("payload", sa.JSON, nullable=True),
    sa.Column("progress", sa.Integer, nullable=True),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_attempts", sa.Integer, nullable=True),
    sa.Column("worker", sa.String(255), nullable=True),
    sa.Column("token", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=sa.func.current_timestamp()),
    sa.Column("scheduled_at", UtcDateTime, nullable=True),
    sa.Column("started_at", UtcDateTime, nullable=True),
    sa.Column("updated_at", UtcDateTime, nullable=True),
    sa.Column("completed_at", UtcDateTime, nullable=True),
    sa.Column("success", sa.Boolean, nullable=True),
    sa.Column("error_message", sa.Text, nullable=True),
)
sa.Index(
    "jobs_open",
    jobs.c.status,
    jobs.c.started_at,
    postgresql_where=jobs.c.completed_at.is_(None),
    sqlite_where=jobs.c.completed_at.is_(None),
)
"""Unstick's own jobs table, whose columns bear the contract's names."""

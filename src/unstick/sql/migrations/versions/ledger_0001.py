"""The ledger: audit log and recoveries."""

import sqlalchemy as sa
from alembic import op

from unstick.sql.tables import JobKey, JobMark, Key, KindName, LongText, UtcDateTime, WorkerName

revision = "ledger_0001"
down_revision = None
branch_labels = ("ledger",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "unstick_audit",
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
    )
    op.create_index("unstick_audit_at", "unstick_audit", ["at"])
    op.create_index("unstick_audit_job", "unstick_audit", ["source", "job_id"], mysql_length={"job_id": 255})
    op.create_table(
        "unstick_recoveries",
        sa.Column("id", Key, primary_key=True),
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
    )
    op.create_index("unstick_recoveries_job", "unstick_recoveries", ["source", "job_id"], mysql_length={"job_id": 255})
    op.create_index("unstick_recoveries_operation", "unstick_recoveries", ["operation_id"])
    op.create_index("unstick_recoveries_at", "unstick_recoveries", ["at"], postgresql_using="brin")
    op.create_table(
        "unstick_intents",
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
    )
    op.create_index("unstick_intents_source", "unstick_intents", ["source", "at"])
    op.create_table(
        "unstick_leases",
        sa.Column("id", WorkerName, primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("began_at", UtcDateTime, nullable=False),
        sa.Column("beat_at", UtcDateTime, nullable=False),
        sa.Column("expires_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "unstick_snoozes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("source", sa.String(63), nullable=False),
        sa.Column("job_id", JobKey, nullable=False),
        sa.Column("numeric_id", sa.Boolean, nullable=False),
        sa.Column("until", UtcDateTime, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
    )
    op.create_index("unstick_snoozes_until", "unstick_snoozes", ["source", "until"])
    op.create_table(
        "unstick_brakes",
        sa.Column("source", sa.String(63), primary_key=True),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("suspects", sa.Integer, nullable=False),
        sa.Column("still_open", sa.Integer, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("released_at", UtcDateTime, nullable=True),
        sa.Column("released_by", sa.String(255), nullable=True),
    )
    op.create_table(
        "unstick_passes",
        sa.Column("source", sa.String(63), primary_key=True),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("back_at", UtcDateTime, nullable=True),
    )
    op.create_table(
        "unstick_leaders",
        sa.Column("source", sa.String(63), primary_key=True),
        sa.Column("holder", WorkerName, nullable=True),
        sa.Column("term", Key, nullable=False),
        sa.Column("expires_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "unstick_watches",
        sa.Column("source", sa.String(63), primary_key=True),
        sa.Column("began_at", UtcDateTime, nullable=False),
        sa.Column("observed_at", UtcDateTime, nullable=True),
        sa.Column("observed", LongText, nullable=True),
        sa.Column("swept_at", UtcDateTime, nullable=True),
        sa.Column("problem", sa.Text, nullable=True),
    )
    op.create_table(
        "unstick_events",
        sa.Column("id", Key, primary_key=True),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("source", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("told", LongText, nullable=False),
    )
    op.create_index("unstick_events_source", "unstick_events", ["source", "id"])
    op.create_index("unstick_events_at", "unstick_events", ["at"])
    op.create_table(
        "unstick_plans",
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
    op.create_table(
        "unstick_plan_pages",
        sa.Column("plan_id", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("content", LongText, nullable=False),
        sa.Column("signature", sa.String(64), nullable=False),
    )
    op.create_table(
        "unstick_late_finishes",
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
    )
    op.create_index("unstick_late_finishes_at", "unstick_late_finishes", ["at"])
    op.create_table(
        "unstick_sightings",
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
    )
    op.create_index("unstick_sightings_seen", "unstick_sightings", ["source", "seen_at"])
    op.create_table(
        "unstick_looks",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("source", sa.String(63), nullable=False),
        sa.Column("job_id", JobKey, nullable=False),
        sa.Column("mark", JobMark, nullable=False),
        sa.Column("looks", sa.Integer, nullable=False),
        sa.Column("counted_at", UtcDateTime, nullable=False),
        sa.Column("found_at", UtcDateTime, nullable=False),
    )
    op.create_index("unstick_looks_found", "unstick_looks", ["source", "found_at"])
    _create_follow_ups()
    _create_alerts()
    _create_access()
    dialect = op.get_context().dialect.name
    if dialect == "postgresql":
        # Compressing thousands of ids costs more than it saves: nearly a tenth of a large recovery.
        op.execute("ALTER TABLE unstick_recoveries ALTER COLUMN jobs SET STORAGE EXTERNAL")
    op.execute(_JOB_RECOVERIES.format(**_EACH_JOB["mysql" if dialect == "mariadb" else dialect]))


def _create_follow_ups() -> None:
    op.create_table(
        "unstick_successes",
        sa.Column("finish", sa.String(64), primary_key=True),
        sa.Column("source", sa.String(63), nullable=False),
        sa.Column("job_id", JobKey, nullable=False),
        sa.Column("recovery_id", Key, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
    )
    job = ["source", "job_id", "at"]
    op.create_index("unstick_successes_job", "unstick_successes", job, mysql_length={"job_id": 255})
    op.create_index("unstick_successes_recovery", "unstick_successes", ["recovery_id"])
    op.create_table(
        "unstick_follow_ups",
        sa.Column("source", sa.String(63), primary_key=True),
        sa.Column("recovery_id", Key, nullable=True),
        sa.Column("at", UtcDateTime, nullable=False),
    )


def _create_alerts() -> None:
    op.create_table(
        "unstick_alerts",
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
    )
    op.create_index("unstick_alerts_source", "unstick_alerts", ["source"])
    op.create_table(
        "unstick_alert_rounds",
        sa.Column("source", sa.String(63), primary_key=True),
        sa.Column("observed_at", UtcDateTime, nullable=True),
    )
    op.create_table(
        "unstick_notifications",
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
    )
    op.create_index("unstick_notifications_due", "unstick_notifications", ["channel", "done_at", "next_try_at"])
    op.create_index("unstick_notifications_alert", "unstick_notifications", ["alert_id"])
    op.create_table(
        "unstick_couriers",
        sa.Column("channel", sa.String(63), primary_key=True),
        sa.Column("holder", WorkerName, nullable=True),
        sa.Column("expires_at", UtcDateTime, nullable=False),
    )


def _create_access() -> None:
    op.create_table(
        "unstick_credentials",
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
    )
    for column in ("name", "opened_by", "expires_at"):
        op.create_index(f"unstick_credentials_{column}", "unstick_credentials", [column])
    op.create_table(
        "unstick_users",
        sa.Column("name", WorkerName, primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("made_by", sa.String(255), nullable=False),
        sa.Column("made_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "unstick_sign_in_failures",
        sa.Column("subject", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("failed_at", UtcDateTime, nullable=True),
        sa.Column("succeeded_at", UtcDateTime, nullable=True),
        sa.Column("at", UtcDateTime, nullable=False),
    )
    op.create_index("unstick_sign_in_failures_at", "unstick_sign_in_failures", ["at"])


_JOB_RECOVERIES = """
CREATE VIEW unstick_job_recoveries AS
SELECT id AS recovery_id, operation_id, source, job_id, state, action, reason, outcome, detail, pre_image, post_image,
    undoes, at
FROM unstick_recoveries WHERE jobs IS NULL
UNION ALL
SELECT r.id, r.operation_id, r.source, {job_id}, r.state, r.action, r.reason, r.outcome,
    REPLACE(r.detail, '{{since}}', REPLACE(SUBSTR({since}, 1, 19), 'T', ' ')), r.pre_image,
    REPLACE(r.post_image, '{{since}}', REPLACE(SUBSTR({since}, 1, 19), 'T', ' ')), r.undoes, r.at
FROM unstick_recoveries AS r {each}
WHERE r.jobs IS NOT NULL
"""
_EACH_JOB = {
    "sqlite": {
        "job_id": "CAST(json_extract(job.value, '$[0]') AS TEXT)",
        "since": "json_extract(job.value, '$[1]')",
        "each": "JOIN json_each(r.jobs) AS job",
    },
    "postgresql": {
        "job_id": "job ->> 0",
        "since": "job ->> 1",
        "each": "CROSS JOIN LATERAL json_array_elements(CAST(r.jobs AS json)) AS job",
    },
    "mysql": {
        "job_id": "job.id",
        "since": "job.since",
        "each": "JOIN JSON_TABLE(r.jobs, '$[*]' COLUMNS ("
        "id VARCHAR(1024) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PATH '$[0]', since VARCHAR(32) PATH '$[1]'"
        ")) AS job",
    },
}


def downgrade() -> None:
    op.execute("DROP VIEW unstick_job_recoveries")
    for table in ("sign_in_failures", "users", "credentials", "couriers", "notifications", "alert_rounds", "alerts"):
        op.drop_table(f"unstick_{table}")
    op.drop_table("unstick_events")
    op.drop_table("unstick_watches")
    op.drop_table("unstick_leaders")
    op.drop_table("unstick_passes")
    op.drop_table("unstick_brakes")
    op.drop_table("unstick_looks")
    op.drop_table("unstick_sightings")
    op.drop_table("unstick_follow_ups")
    op.drop_table("unstick_successes")
    op.drop_table("unstick_snoozes")
    op.drop_table("unstick_plan_pages")
    op.drop_table("unstick_plans")
    op.drop_table("unstick_late_finishes")
    op.drop_table("unstick_leases")
    op.drop_table("unstick_intents")
    op.drop_table("unstick_recoveries")
    op.drop_table("unstick_audit")

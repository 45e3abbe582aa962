"""The job systems that are measured: what fills their tables, and what tells that no job is stuck there any more.

Facts are of the releases pinned beside their tests (`tests/systems`) and in `benchmarks/others/bullmq`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.servers import SYSTEMS, environment_of

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Other:
    """A job system, in an environment of its own."""

    name: str
    """Of its folder here and its environment."""
    says: str
    """What it is called, with its release."""
    at_most: int | None = None
    """How many jobs it is given to recover, where it takes seconds for one."""
    preset: str | None = None
    """What Unstick reads its jobs by; None where it has nothing for this system yet."""

    @property
    def environment(self) -> Path:
        """Where `scripts/install-systems` puts it."""
        return environment_of(self.name, SYSTEMS if (SYSTEMS / self.name).is_dir() else HERE)

    @property
    def command(self) -> list[str]:
        """What runs its script."""
        script = HERE / self.name / "recover.py"
        if script.exists():
            return [str(self.environment / "bin" / "python"), str(script)]
        return ["node", str(script.with_suffix(".mjs"))]


@dataclass(frozen=True, kw_only=True)
class InTables(Other):
    """One that keeps its jobs in PostgreSQL; statements have `{rows}` for how many."""

    finished: tuple[str, ...]
    stuck: tuple[str, ...]
    """All of them began five hours ago, and have shown no life since."""
    left: str
    """Counts the jobs that are still stuck."""
    what_is_finished: str = "finished jobs"
    """What is in its tables for them, where that isn't the jobs themselves."""


_SAQ_JOB = """
convert_to(jsonb_build_object(
    'function', 'hold', 'kwargs', '{}'::jsonb, 'queue', 'held', 'key', key, 'timeout', 600, 'retries', 3,
    'attempts', 1, 'queued', began, 'started', began, 'touched', began, 'status', status, 'worker_id', 'worker-1'
)::text, 'UTF8')
"""

IN_TABLES = (
    InTables(
        name="pgqueuer",
        says="PgQueuer 1.6",
        preset="pgqueuer",
        what_is_finished="entries of finished jobs in its log, for they leave its table",
        finished=(
            """
            INSERT INTO pgqueuer_log (created, job_id, status, entrypoint, priority, aggregated)
            SELECT now() - make_interval(secs => 86400 - i * 0.01), i, 'successful', 'hold', 0, true
            FROM generate_series(1, {rows}) AS i
            """,
            "SELECT setval('pgqueuer_id_seq', {rows})",
        ),
        stuck=(
            """
            INSERT INTO pgqueuer (priority, queue_manager_id, created, updated, heartbeat, execute_after, status,
                entrypoint, payload)
            SELECT 0, gen_random_uuid(), began, began, began, began, 'picked', 'hold', '{{}}'
            FROM (SELECT now() - interval '5 hours' AS began FROM generate_series(1, {rows})) AS job
            """,
        ),
        left="SELECT count(*) FROM pgqueuer WHERE status = 'picked' AND heartbeat < now() - interval '1 hour'",
    ),
    InTables(
        name="graphile_worker",
        says="Graphile Worker 0.17",
        preset="graphile_worker",
        what_is_finished="jobs that failed for good, for those that succeeded leave its table",
        finished=(
            "DELETE FROM graphile_worker._private_jobs",
            """
            INSERT INTO graphile_worker._private_jobs (task_id, payload, attempts, max_attempts, last_error)
            SELECT task.id, json_build_object('number', i), 3, 3, 'it failed'
            FROM generate_series(1, {rows}) AS i, graphile_worker._private_tasks AS task
            """,
        ),
        stuck=(
            """
            INSERT INTO graphile_worker._private_jobs
                (task_id, payload, attempts, run_at, created_at, updated_at, locked_at, locked_by)
            SELECT id, '{{}}', 1, began, began, began, began, 'worker-1'
            FROM (SELECT now() - interval '5 hours' AS began FROM generate_series(1, {rows})) AS job,
                graphile_worker._private_tasks
            """,
        ),
        left="SELECT count(*) FROM graphile_worker._private_jobs WHERE locked_at IS NOT NULL",
    ),
    InTables(
        name="pgboss",
        says="pg-boss 12.38",
        preset="pgboss",
        finished=(
            """
            INSERT INTO pgboss.job (name, data, state, created_on, started_on, completed_on, keep_until)
            SELECT 'held', '{{}}', 'completed', at, at, at, now() + interval '14 days'
            FROM (SELECT now() - make_interval(secs => 86400 - i * 0.01) AS at
                  FROM generate_series(1, {rows}) AS i) AS job
            """,
        ),
        stuck=(
            """
            INSERT INTO pgboss.job (name, data, state, created_on, started_on, start_after, keep_until)
            SELECT 'held', '{{}}', 'active', began, began, began, now() + interval '14 days'
            FROM (SELECT now() - interval '5 hours' AS began FROM generate_series(1, {rows})) AS job
            """,
        ),
        left="SELECT count(*) FROM pgboss.job WHERE state = 'active'",
    ),
    InTables(
        name="chancy",
        says="Chancy 0.26",
        preset="chancy",
        finished=(
            """
            INSERT INTO chancy_jobs
                (id, queue, func, state, attempts, created_at, started_at, completed_at, scheduled_at)
            SELECT gen_random_uuid(), 'held', 'app.hold', 'succeeded', 1, at, at, at, at
            FROM (SELECT now() - make_interval(secs => 86400 - i * 0.01) AS at
                  FROM generate_series(1, {rows}) AS i) AS job
            """,
        ),
        stuck=(
            """
            INSERT INTO chancy_jobs
                (id, queue, func, state, taken_by, claim_id, created_at, started_at, scheduled_at)
            SELECT gen_random_uuid(), 'held', 'app.hold', 'running', 'worker-' || i % 100, gen_random_uuid(),
                began, began, began
            FROM (SELECT i, now() - interval '5 hours' AS began FROM generate_series(1, {rows}) AS i) AS job
            """,
        ),
        left="SELECT count(*) FROM chancy_jobs WHERE state = 'running'",
    ),
    InTables(
        name="procrastinate",
        says="Procrastinate 3.10",
        preset="procrastinate",
        finished=(
            "SET LOCAL session_replication_role = replica",  # no triggers, for the events are written beside
            """
            INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, attempts)
            SELECT 'held', 'hold', '{{}}', 'succeeded', 1 FROM generate_series(1, {rows})
            """,
            """
            INSERT INTO procrastinate_events (job_id, type, at)
            SELECT id, type, now() - interval '1 day'
            FROM procrastinate_jobs, unnest(enum_range('deferred'::procrastinate_job_event_type, 'succeeded')) AS type
            WHERE type IN ('deferred', 'started', 'succeeded') ORDER BY id
            """,
        ),
        stuck=(
            "SET LOCAL session_replication_role = replica",
            """
            INSERT INTO procrastinate_workers (last_heartbeat)
            SELECT now() - interval '5 hours' FROM generate_series(1, 100)
            """,
            """
            WITH job AS (
                INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, worker_id)
                SELECT 'held', 'hold', '{{}}', 'doing', 1 + i % 100 FROM generate_series(1, {rows}) AS i RETURNING id
            )
            INSERT INTO procrastinate_events (job_id, type, at)
            SELECT id, type, now() - interval '5 hours'
            FROM job, unnest(enum_range('deferred'::procrastinate_job_event_type, 'started')) AS type ORDER BY id
            """,
        ),
        left="SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'",
    ),
    InTables(
        name="saq",
        says="SAQ 0.26 on PostgreSQL",
        preset="saq",
        at_most=2,
        finished=(
            f"""
            INSERT INTO saq_jobs (key, job, queue, status)
            SELECT key, {_SAQ_JOB.replace("{", "{{").replace("}", "}}")}, 'held', status
            FROM (SELECT 'finished-' || i AS key, 'complete' AS status,
                  (extract(epoch FROM now()) * 1000)::bigint - 86400000 AS began
                  FROM generate_series(1, {{rows}}) AS i) AS job
            """,
        ),
        stuck=(
            f"""
            INSERT INTO saq_jobs (key, job, queue, status)
            SELECT key, {_SAQ_JOB.replace("{", "{{").replace("}", "}}")}, 'held', status
            FROM (SELECT 'stuck-' || i AS key, 'active' AS status,
                  (extract(epoch FROM now()) * 1000)::bigint - 18000000 AS began
                  FROM generate_series(1, {{rows}}) AS i) AS job
            """,
        ),
        left="SELECT count(*) FROM saq_jobs WHERE status IN ('active', 'aborting')",
    ),
)

BEHIND_BROKERS = (
    Other(name="rq", says="RQ 3.0 on Valkey", preset="rq"),
    Other(name="bullmq", says="BullMQ 6.7 on Valkey"),
)

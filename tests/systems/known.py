"""The job systems that are tested, one entry each."""

from tests.systems.harness import InSql, System

SYSTEMS = (
    System(
        name="procrastinate",
        source={
            "registry": {
                "table": "procrastinate_workers",
                "columns": {"id": "id", "heartbeat_at": "last_heartbeat"},
                "alive_for": "2s",
                "unowned": "released",
            }
        },
        unknown="ALTER FUNCTION procrastinate_finish_job_v1 RENAME TO procrastinate_finish_job_v2",
        failed={"state": "failed", "attempts": 1},
        retried={"state": "succeeded", "attempts": 2},
        undoable=False,
    ),
    System(
        name="pgqueuer",
        unknown="ALTER TABLE pgqueuer ADD COLUMN shard text",
        failed={"state": "failed"},
        retried={"state": "successful"},
        undoable=False,
    ),
    System(
        name="django_tasks",
        databases=("sqlite", "postgres18", "mariadb"),
        grow_old="UPDATE django_tasks_database_dbtaskresult SET started_at = '2026-01-01 00:00:00' WHERE id IN :ids",
        unknown="UPDATE django_migrations SET name = '0099_another' WHERE app = 'django_tasks_database'",
        failed={"state": "FAILED", "class": "unstick.StuckJob"},
        retried={"state": "SUCCESSFUL"},
    ),
    System(
        name="river",
        grow_old="UPDATE river_job SET attempted_at = now() - interval '2 hours' WHERE id IN :ids",
        unknown="INSERT INTO river_migration (line, version) VALUES ('main', 99)",
        failed={"state": "discarded", "attempt": 1},
        retried={"state": "completed"},
        in_sql=InSql(
            version="migration 7",
            enqueue="""
                INSERT INTO river_job (kind, args) VALUES ('hold', jsonb_build_object('token', %(token)s::text))
                RETURNING id
            """,
            claim="""
                WITH due AS (
                    UPDATE river_job SET state = 'available'
                    WHERE id = %(id)s AND state = 'retryable' AND scheduled_at <= now()
                )
                UPDATE river_job SET state = 'running', attempt = attempt + 1, attempted_at = now(),
                attempted_by = array_append(attempted_by, 'client')
                WHERE id = %(id)s AND state = 'available' AND scheduled_at <= now() RETURNING id
            """,
            finish="""
                UPDATE river_job SET state = 'completed', finalized_at = now() WHERE id = %(id)s AND state = 'running'
            """,
            tell="""
                SELECT state::text, attempt, errors[array_upper(errors, 1)] ->> 'error' AS error FROM river_job
                WHERE id = %(id)s
            """,
        ),
    ),
    System(
        name="oban",
        grow_old="UPDATE oban_jobs SET attempted_at = timezone('UTC', now()) - interval '2 hours' WHERE id IN :ids",
        unknown="COMMENT ON TABLE oban_jobs IS '99'",
        failed={"state": "discarded", "attempt": 1},
        retried={"state": "completed", "attempt": 2},
        in_sql=InSql(
            version="migration 14",
            enqueue="""
                INSERT INTO oban_jobs (worker, args, max_attempts)
                VALUES ('Hold', jsonb_build_object('token', %(token)s::text), 1) RETURNING id
            """,
            claim="""
                WITH due AS (
                    UPDATE oban_jobs SET state = 'available'
                    WHERE id = %(id)s AND state IN ('scheduled', 'retryable') AND scheduled_at <= timezone('UTC', now())
                )
                UPDATE oban_jobs SET state = 'executing', attempt = attempt + 1,
                attempted_at = timezone('UTC', now()), attempted_by = ARRAY['node', 'uuid']
                WHERE id = %(id)s AND state = 'available' AND attempt < max_attempts RETURNING id
            """,
            finish="UPDATE oban_jobs SET state = 'completed', completed_at = timezone('UTC', now()) WHERE id = %(id)s",
            tell="""
                SELECT state::text, attempt, errors[array_upper(errors, 1)] ->> 'error' AS error FROM oban_jobs
                WHERE id = %(id)s
            """,
        ),
    ),
    System(
        name="chancy",
        source={
            "registry": {
                "table": "chancy_workers",
                "columns": {"id": "worker_id", "heartbeat_at": "last_seen"},
                "alive_for": "3s",
            }
        },
        unknown="UPDATE chancy_schema_version SET version = 9 WHERE version_of = 'chancy'",
        failed={"state": "failed", "attempts": 1},
        retried={"state": "succeeded", "attempts": 1, "max_attempts": 2},
    ),
    System(
        name="graphile_worker",
        grow_old="UPDATE graphile_worker._private_jobs SET locked_at = now() - interval '2 hours' WHERE id IN :ids",
        unknown="INSERT INTO graphile_worker.migrations (id, breaking) VALUES (20, false)",
        failed={"state": "failed", "attempts": 25, "queue_is_free": True},
        retried={"state": "completed"},
        undoable=False,
    ),
)

"""The job systems that are tested, one entry each."""

from tests.systems.harness import InSql, System, Wait
from unstick.domain.standing import Standing

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
        name="graphile_worker",
        grow_old="UPDATE graphile_worker._private_jobs SET locked_at = now() - interval '2 hours' WHERE id IN :ids",
        unknown="INSERT INTO graphile_worker.migrations (id, breaking) VALUES (20, false)",
        failed={"state": "failed", "attempts": 25, "queue_is_free": True},
        retried={"state": "completed"},
        waits=(
            Wait(
                made_by=(
                    "UPDATE graphile_worker._private_jobs SET job_queue_id = 2",
                    (
                        "UPDATE graphile_worker._private_jobs SET locked_at = now() - interval '2 hours'"
                        " WHERE payload->>'token' = 'other'"
                    ),
                ),
                standing=Standing.BLOCKED,
                words="job 2 has its queue other",
                blocks=True,
            ),
        ),
        undoable=False,
    ),
    System(
        name="pgboss",
        unknown="UPDATE pgboss.version SET version = 47",
        failed={"state": "failed", "attempts": 1, "letters": ["failed"]},
        retried={"state": "completed", "attempts": 2, "attempts_at_most": 2, "letters": []},
        waits=(
            Wait(
                made_by=(
                    (
                        "INSERT INTO pgboss.job_dependency SELECT waits.name, waits.id, other.name, other.id"
                        " FROM pgboss.job AS waits JOIN pgboss.job AS other"
                        " ON waits.data->>'token' = 'waits' AND other.data->>'token' = 'other'"
                    ),
                    "UPDATE pgboss.job SET blocked = data->>'token' = 'waits'",
                ),
                standing=Standing.BLOCKED,
                words="it depends on jobs ",
            ),
            Wait(
                made_by=(
                    "UPDATE pgboss.job SET blocked = false, policy = 'singleton'",
                    "DELETE FROM pgboss.job_dependency",
                    (
                        "UPDATE pgboss.job SET state = 'active', started_on = now() - interval '2 hours'"
                        " WHERE data->>'token' = 'other'"
                    ),
                ),
                standing=Standing.BLOCKED,
                words=" has its place in a queue that is singleton",
                blocks=True,
            ),
        ),
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
        name="delayed_job",
        stands_in=True,
        databases=("sqlite", "postgres18", "mariadb"),
        source={"process": {"worker": "{any}host:{host} pid:{pid}"}},
        failed={"state": "failed", "attempts": 1},
        retried={"state": "done"},
    ),
    System(
        name="good_job",
        stands_in=True,
        source={
            "registry": {
                "table": "good_job_processes",
                "columns": {"id": "id", "heartbeat_at": "updated_at"},
                "alive_for": "2s",
                "unowned": "released",
            }
        },
        unknown="ALTER TABLE good_jobs ADD COLUMN shard text",
        failed={"state": "discarded", "executions": ["discarded"]},
        retried={"state": "succeeded", "executions": ["retried", "succeeded"]},
        waits=(
            Wait(
                made_by=(
                    (
                        "INSERT INTO good_job_settings (created_at, updated_at, key, value)"
                        " SELECT now(), now(), 'pauses', jsonb_build_object('queues', jsonb_build_array('held'))"
                    ),
                ),
                standing=Standing.PAUSED,
                words="its queue held is paused",
            ),
            Wait(
                made_by=(
                    "UPDATE good_job_settings SET value = jsonb_build_object('job_classes', jsonb_build_array('Hold'))",
                ),
                standing=Standing.PAUSED,
                words="its class Hold is paused",
            ),
            Wait(
                made_by=(
                    "UPDATE good_job_settings SET value = jsonb_build_object('labels', jsonb_build_array('late'))",
                    "UPDATE good_jobs SET labels = ARRAY['late']",
                ),
                standing=Standing.PAUSED,
                words="its label is paused",
            ),
        ),
        undoable=False,
    ),
    System(
        name="solid_queue",
        stands_in=True,
        source={
            "registry": {
                "table": "solid_queue_processes",
                "columns": {"id": "id", "heartbeat_at": "last_heartbeat_at"},
                "alive_for": "2s",
                "unowned": "released",
            }
        },
        unknown="ALTER TABLE solid_queue_claimed_executions ADD COLUMN shard text",
        failed={"state": "failed"},
        retried={"state": "finished"},
        waits=(
            Wait(
                made_by=("INSERT INTO solid_queue_pauses (queue_name, created_at) VALUES ('held', now())",),
                standing=Standing.PAUSED,
                words="its queue held is paused",
            ),
            Wait(
                made_by=(
                    "DELETE FROM solid_queue_pauses",
                    "DELETE FROM solid_queue_ready_executions",
                    "UPDATE solid_queue_jobs SET concurrency_key = 'Hold/1'",
                    (
                        "INSERT INTO solid_queue_blocked_executions SELECT 1, id, 'held', 0, 'Hold/1', now(), now()"
                        " FROM solid_queue_jobs WHERE arguments LIKE '%waits%'"
                    ),
                    (
                        "INSERT INTO solid_queue_claimed_executions (job_id, created_at)"
                        " SELECT id, now() - interval '2 hours' FROM solid_queue_jobs WHERE arguments LIKE '%other%'"
                    ),
                ),
                standing=Standing.BLOCKED,
                words="job 2 has its place under Hold/1",
                blocks=True,
            ),
        ),
        undoable=False,
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
)

"""The job systems that are tested, one entry each."""

from tests.systems.harness import System, Wait
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
        name="chancy",
        unknown="UPDATE chancy_schema_version SET version = 9 WHERE version_of = 'chancy'",
        failed={"state": "failed", "attempts": 1},
        retried={"state": "succeeded", "attempts": 1, "max_attempts": 2},
        waits=(
            Wait(
                made_by=("UPDATE chancy_queues SET state = 'paused' WHERE name = 'waits'",),
                standing=Standing.PAUSED,
                words="its queue waits is paused",
            ),
        ),
    ),
    System(
        name="saq",
        unknown="UPDATE saq_versions SET version = 4",
        failed={"state": "failed", "attempts": 1},
        retried={"state": "complete", "attempts": 2},
        waits=(
            Wait(
                made_by=(
                    "UPDATE saq_jobs SET queue = 'waits'",
                    (
                        "UPDATE saq_jobs SET status = 'active', group_key = 'g',"
                        " job = convert_to((convert_from(job, 'UTF8')::jsonb"
                        " || jsonb_build_object('started', 1, 'touched', 1))::text, 'UTF8') WHERE key = 'other:1'"
                    ),
                ),
                standing=Standing.BLOCKED,
                words="job other:1 of group g is running",
                blocks=True,
            ),
        ),
    ),
    System(
        name="oban_python",
        source={
            "registry": {
                "table": "oban_producers",
                "columns": {"id": "uuid", "heartbeat_at": "updated_at"},
                "alive_for": "2s",
            }
        },
        unknown="ALTER TABLE oban_jobs ADD COLUMN shard text",
        failed={"state": "discarded", "attempt": 1},
        retried={"state": "completed", "attempt": 2, "rescued": 1},
        waits=(
            Wait(
                made_by=(
                    (
                        "INSERT INTO oban_producers (uuid, node, queue, meta)"
                        " SELECT gen_random_uuid(), 'worker.1', 'waits', jsonb_build_object('paused', true)"
                    ),
                ),
                standing=Standing.PAUSED,
                words="its queue waits is paused",
            ),
        ),
    ),
    System(
        name="taskiq",
        grow_old="UPDATE taskiq_messages SET created_at = '2026-01-01 00:00:00Z' WHERE id IN :ids",
        unknown="ALTER TABLE taskiq_messages ADD COLUMN shard text",
        failed={"state": "no result"},
        retried={"state": "a result"},
        hears_once=True,
    ),
    System(
        name="django_q2",
        databases=("sqlite", "postgres18", "mariadb"),
        grow_old="""UPDATE django_q_ormq SET "lock" = '2026-01-01 00:00:00' WHERE id IN :ids""",
        unknown="UPDATE django_migrations SET name = '0099_another' WHERE app = 'django_q'",
        failed={"state": "no result", "queued": 0, "locked": 0},
        retried={"state": "success"},
        ageless=True,
        returns=True,
    ),
    System(
        name="celery_results",
        grow_old="""
        WITH moved AS (UPDATE celery_taskmeta SET id = -10 * id WHERE task_id IN :ids RETURNING id)
        INSERT INTO celery_taskmeta (id, task_id, status, date_done)
        SELECT id + 1, 'another ' || id, 'SUCCESS', '2026-01-01 00:00:00' FROM moved
        """,
        unknown="ALTER TABLE celery_taskmeta ADD COLUMN shard text",
        failed={"state": "FAILURE", "class": "StuckJob"},
        retried={"state": "SUCCESS"},
        ageless=True,
        retries=False,
    ),
    System(
        name="delayed_job",
        stands_in=True,
        databases=("sqlite", "mariadb"),
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
        stands_in=True,
        grow_old="UPDATE river_job SET attempted_at = now() - interval '2 hours' WHERE id IN :ids",
        unknown="INSERT INTO river_migration (line, version) VALUES ('main', 99)",
        failed={"state": "discarded", "attempt": 1},
        retried={"state": "completed"},
        waits=(
            Wait(
                made_by=("UPDATE river_queue SET paused_at = now()",),
                standing=Standing.PAUSED,
                words="its queue default is paused",
            ),
        ),
    ),
    System(
        name="oban",
        stands_in=True,
        grow_old="UPDATE oban_jobs SET attempted_at = timezone('UTC', now()) - interval '2 hours' WHERE id IN :ids",
        unknown="COMMENT ON TABLE oban_jobs IS '99'",
        failed={"state": "discarded", "attempt": 1},
        retried={"state": "completed", "attempt": 2},
    ),
)

"""The job systems that are tested, one entry each."""

from tests.systems.harness import System

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
        undoable=False,
    ),
    System(
        name="pgboss",
        unknown="UPDATE pgboss.version SET version = 47",
        failed={"state": "failed", "attempts": 1, "letters": ["failed"]},
        retried={"state": "completed", "attempts": 2, "attempts_at_most": 2, "letters": []},
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
)

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
        grow_old="UPDATE graphile_worker._private_jobs SET locked_at = now() - interval '2 hours' WHERE id = ANY(:ids)",
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
)

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
)

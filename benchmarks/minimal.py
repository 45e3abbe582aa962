"""The least that could answer `GET /jobs/stuck` with FastAPI: asyncpg and orjson, nobody asked who they are."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
from fastapi import FastAPI, Request, Response

from benchmarks.filling import TABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_OPEN = f"FROM {TABLE} WHERE completed_at IS NULL"
_SILENT = "status = 'running' AND started_at < $1 AND updated_at < $1"
_UNCLAIMED = "status IN ('queued', 'pending') AND coalesce(started_at, created_at) < $1"
_COLUMNS = "id, status, job_type, created_at, scheduled_at, started_at, updated_at, attempt"
_COUNT = f"SELECT status, count(*) {_OPEN} AND ({_SILENT} OR {_UNCLAIMED}) GROUP BY status"


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["BENCHMARK_DATABASE"], min_size=5, max_size=15) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=_lifespan)


@app.get("/jobs/stuck")
async def stuck(request: Request, limit: int = 100) -> Response:
    """Count, and list each state's, oldest first."""
    async with request.app.state.pool.acquire() as connection:
        now = await connection.fetchval("SELECT now() - interval '30 minutes'")
        counts = dict(await connection.fetch(_COUNT, now))
        queued, running = [
            await connection.fetch(f"SELECT {_COLUMNS} {_OPEN} AND {each} ORDER BY updated_at, id LIMIT $2", now, limit)
            for each in (_UNCLAIMED, _SILENT)
        ]
    return Response(orjson.dumps(_answer(counts, queued, running)), media_type="application/json")


def _answer(counts: dict[str, int], queued: list[Any], running: list[Any]) -> dict[str, Any]:
    total, now = sum(counts.values()), datetime.now(UTC)
    return {
        "stuck_jobs": {
            "total": total,
            "queued_stuck": total - counts.get("running", 0),
            "running_stuck": counts.get("running", 0),
        },
        "queued_jobs": [_job(row, now) for row in queued],
        "running_jobs": [_job(row, now) for row in running],
        "threshold_minutes": 5,
        "running_threshold_minutes": 30,
        "monitored_at": now,
        "recommendations": {"cleanup_needed": total > 0, "message": f"Found {total} stuck job(s)."},
        "unserved_queues": [],
        "undecided_jobs": 0,
        "counts_exact": True,
        "snoozed": 0,
        "next_cursor": None,
    }


def _job(row: Any, now: datetime) -> dict[str, Any]:  # noqa: ANN401 - the driver has no types
    since = row["updated_at"] or row["created_at"]
    return {
        "id": row["id"],
        "state": row["status"],
        "status": row["status"],
        "kind": row["job_type"],
        "queue": None,
        "attempt": row["attempt"],
        "max_attempts": None,
        "worker": None,
        "enqueued_at": row["created_at"],
        "scheduled_at": row["scheduled_at"],
        "started_at": row["started_at"],
        "heartbeat_at": row["updated_at"],
        "stuck_since": since,
        "age_seconds": (now - since).total_seconds(),
        "reason": "silent",
        "sentence": f"No sign of life since {since:%Y-%m-%d %H:%M:%S} UTC, and nobody to ask.",
        "outlook": None,
        "evidence": [{"witness": "heartbeat", "holding": "unknown", "at": row["updated_at"], "value": None}],
    }

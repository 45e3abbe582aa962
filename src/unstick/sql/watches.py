"""How the watch over each source goes, in a table of Unstick's own: every replica can tell, whichever keeps it."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from unstick.domain.diagnosis import Reason
from unstick.domain.events import Held, Observed, QueueReason, QueueState
from unstick.domain.health import WatchRecord
from unstick.domain.job import JobState
from unstick.domain.queue import Workers
from unstick.sql.connections import Connections
from unstick.sql.tables import watches
from unstick.sql.upserting import upsert

_LONGEST_PROBLEM = 2_000


class SqlWatches:
    """Watches in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def find(self, source: str) -> WatchRecord | None:
        """Return what is known of a watch."""
        async with self._connections.reading() as (connection, now):
            chosen = sa.select(watches).where(watches.c.source == source)
            row = (await connection.execute(chosen)).mappings().one_or_none()
        if row is None:
            return None
        return WatchRecord(
            at=now,
            began_at=row["began_at"],
            observed_at=row["observed_at"],
            observed=None if row["observed"] is None else _read(json.loads(row["observed"])),
            swept_at=row["swept_at"],
            problem=row["problem"],
        )

    async def note_observed(self, observed: Observed) -> None:
        """Keep an observation as the last one."""
        async with self._connections.writing() as (connection, now):
            said = {"observed_at": now, "observed": json.dumps(_values(observed)), "problem": None}
            await connection.execute(self._noted(observed.source, now, said))

    async def note_swept(self, source: str) -> None:
        """Keep that an unattended sweep came to its end."""
        async with self._connections.writing() as (connection, now):
            await connection.execute(self._noted(source, now, {"swept_at": now, "problem": None}))

    async def note_problem(self, source: str, problem: str) -> None:
        """Keep what went wrong."""
        async with self._connections.writing() as (connection, now):
            await connection.execute(self._noted(source, now, {"problem": problem[:_LONGEST_PROBLEM]}))

    def _noted(self, source: str, now: datetime, said: Mapping[str, object]) -> sa.Insert:
        row = {"source": source, "began_at": now, **said}
        return upsert(self._connections.dialect.name, watches, "source", row, said)


def _values(observed: Observed) -> dict[str, object]:
    held = observed.held
    return {
        "source": observed.source,
        "at": observed.at.isoformat(),
        "took": observed.took.total_seconds(),
        "open_jobs": [[queue, state, number] for (queue, state), number in observed.open_jobs.items()],
        "stuck": [[queue, reason, number] for (queue, reason), number in observed.stuck.items()],
        "undecided": observed.undecided,
        "exact": observed.exact,
        "oldest_queued": _seconds(observed.oldest_queued),
        "oldest_running": _seconds(observed.oldest_running),
        "held": None if held is None else [held.since.isoformat(), held.suspects, held.cause],
        "grace_until": None if observed.grace_until is None else observed.grace_until.isoformat(),
        "late_finishes": observed.late_finishes,
        "workers": [observed.workers.living, list(observed.workers.by_queue.items())],
    }


def _read(said: Mapping[str, Any]) -> Observed:
    held = said["held"]
    return Observed(
        source=said["source"],
        at=datetime.fromisoformat(said["at"]),
        took=timedelta(seconds=said["took"]),
        open_jobs={QueueState(queue, JobState(state)): number for queue, state, number in said["open_jobs"]},
        stuck={QueueReason(queue, Reason(reason)): number for queue, reason, number in said["stuck"]},
        undecided=said["undecided"],
        exact=said["exact"],
        oldest_queued=_duration(said["oldest_queued"]),
        oldest_running=_duration(said["oldest_running"]),
        held=None if held is None else Held(since=datetime.fromisoformat(held[0]), suspects=held[1], cause=held[2]),
        grace_until=None if said["grace_until"] is None else datetime.fromisoformat(said["grace_until"]),
        late_finishes=said["late_finishes"],
        workers=_workers(*said.get("workers", (None, ()))),
    )


def _workers(living: int | None, by_queue: Sequence[tuple[str | None, int]]) -> Workers:
    return Workers(living=living, by_queue=dict(by_queue))


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)

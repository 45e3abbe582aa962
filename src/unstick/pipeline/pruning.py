"""Striking records that have been kept long enough, and saying so in the audit log."""

from collections import Counter

from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import InvalidRequestError
from unstick.domain.retention import Pruned
from unstick.pipeline.course import surely
from unstick.pipeline.watched import Watched

PRUNE_CALL = "db.prune"
"""What it is called in the audit log."""


async def prune(watched: Watched, actor: str) -> Pruned:
    """Strike what is older than the retention says; what was struck is in the audit log, also where it was cut off.

    Raises:
        InvalidRequestError: there is nothing to strike from.
    """
    if watched.pruner is None:
        raise InvalidRequestError(f"Source {watched.source.name!r} keeps no records that could be struck.")
    rows: Counter[str] = Counter()
    try:
        async for table, number in watched.pruner.prune(watched.retention):
            rows[table] += number
    finally:
        if rows:
            await surely(_record(watched, actor, rows))
    return Pruned(rows=rows)


async def _record(watched: Watched, actor: str, rows: Counter[str]) -> None:
    retention = watched.retention
    ages = {"events": retention.events, "sightings": retention.sightings, "audit": retention.audit}
    entry = AuditEntry(
        actor=actor,
        call=PRUNE_CALL,
        outcome=AuditOutcome.DONE,
        parameters={name: None if age is None else age.total_seconds() for name, age in ages.items()},
        result=dict(rows),
    )
    await watched.ledger.append(entry)

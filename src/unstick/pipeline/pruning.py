"""Striking records that have been kept long enough, and saying so in the audit log."""

from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import InvalidRequestError
from unstick.domain.retention import Pruned
from unstick.pipeline.watched import Watched

PRUNE_CALL = "db.prune"
"""What it is called in the audit log."""


async def prune(watched: Watched, actor: str) -> Pruned:
    """Strike what is older than the retention says; what was struck, if anything, is in the audit log.

    Raises:
        InvalidRequestError: there is nothing to strike from.
    """
    if watched.pruner is None:
        raise InvalidRequestError(f"Source {watched.source.name!r} keeps no records that could be struck.")
    pruned = await watched.pruner.prune(watched.retention)
    if pruned.total:
        retention = watched.retention
        ages = {"events": retention.events, "sightings": retention.sightings, "audit": retention.audit}
        entry = AuditEntry(
            actor=actor,
            call=PRUNE_CALL,
            outcome=AuditOutcome.DONE,
            parameters={name: None if age is None else age.total_seconds() for name, age in ages.items()},
            result=dict(pruned.rows),
        )
        await watched.ledger.append(entry)
    return pruned

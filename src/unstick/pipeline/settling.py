"""What became of intents whose process ended between its change and its word on it."""

from datetime import timedelta

from unstick.domain.recovery import settled
from unstick.pipeline.watched import Watched

IN_FLIGHT = timedelta(minutes=10)
"""How long an intent may be under way: several times what a batch may take, with all its tries and halvings."""


async def settle_intents(watched: Watched) -> int:
    """Look at the jobs of intents that nobody settled, record what became of each, and return how many there were.

    Nothing is to do where a source records its changes itself. Intents younger than `IN_FLIGHT` are left: the
    process that wrote them may still be at it.
    """
    source, ledger = watched.source, watched.ledger
    if source.capabilities.records:
        return 0
    unsettled = await ledger.unsettled(source.name, IN_FLIGHT)
    for operation_id, intents in unsettled.items():
        images = await source.images(intents)
        since = min(intent.at for intent in intents if intent.at is not None)
        job_ids = [intent.job_id for intent in intents]
        retried = await ledger.spent(source.name, job_ids, since, before_success=True)
        recoveries = [settled(each, images.get(each.job_id), retried.get(each.job_id, 0)) for each in intents]
        await ledger.find_out(source.name, operation_id, recoveries)
    return sum(len(intents) for intents in unsettled.values())

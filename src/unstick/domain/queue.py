"""Whether a queue is being served: what tells a job that waits for its turn from one that will wait for ever."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from unstick.domain.diagnosis import Reason

DRAINS_FROM = 2
"""Claims within the queued threshold that make a draining queue: a single one may have been the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFlow:
    """How a queue moves, as seen in a bounded number of its newest claims."""

    recent_claims: int
    """How many jobs were claimed within the queued threshold."""
    reached: datetime
    """When the youngest job that was ever claimed could first be claimed: how far the queue has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """How many workers live, so far as they tell."""

    living: int | None = None
    """Those that may take a job of any queue; None where workers don't tell that they live."""
    by_queue: Mapping[str | None, int] = field(default_factory=dict)
    """Those of each queue, where workers tell which they serve."""

    def serving(self, queue: str | None) -> int | None:
        """Return how many living workers serve a queue, None where that isn't known."""
        return self.by_queue.get(queue, self.living)


NOT_TOLD = Workers()
"""Nobody tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """How a source's queues move."""

    by_queue: Mapping[str | None, QueueFlow]
    """Queues of which no claim was seen are left out."""
    served: bool | None = None
    """Whether any worker lives that could serve them; None where workers don't tell."""
    unserved: frozenset[str | None] = frozenset()
    """Queues that no living worker serves, where workers tell which they serve."""

    @property
    def alike(self) -> bool:
        """Tell whether jobs of all queues wait for the same reason."""
        return not (self.draining() or self.unserved)

    def draining(self) -> Mapping[str | None, datetime]:
        """Return the queues that drain, and how far they have come."""
        return {queue: flow.reached for queue, flow in self.by_queue.items() if flow.recent_claims >= DRAINS_FROM}

    def waiting_reason(self, queue: str | None) -> Reason:
        """Say why jobs of a queue that are past their threshold, and are no backlog, have not been claimed."""
        if queue in self.draining():
            return Reason.OVERTAKEN
        unserved = self.served is False or queue in self.unserved
        return Reason.UNSERVED if unserved else Reason.NEVER_CLAIMED

"""How long Unstick's own records are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long what is kept: the record of what was done to jobs for ever, unless the operator says how long."""

    events: timedelta = timedelta(days=7)
    """Events, and snoozes, alerts and credentials that are over."""
    sightings: timedelta = timedelta(days=30)
    """How suspects looked."""
    audit: timedelta | None = None
    """The audit log, recoveries with what they overwrote, and late finishes. What is gone can't be undone any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was struck."""

    rows: Mapping[str, int] = field(default_factory=dict)
    """How many rows of which table."""

    @property
    def total(self) -> int:
        """All rows."""
        return sum(self.rows.values())

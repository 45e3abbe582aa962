"""Which of several replicas sweeps a source: who holds its lease, and for the how-many-th term."""

from dataclasses import dataclass
from datetime import timedelta

LEADS_FOR = timedelta(seconds=20)
"""How long a leader that is silent keeps its source; it renews its lease three times as often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """A source's lease in one replica's hand."""

    source: str
    holder: str
    """Who leads, by the name of its process: host, number, boot id."""
    term: int
    """Larger for each new leader, so that what an old one did can be told from what the new one does."""

"""What a source's finished jobs tell: how long they took, and what a threshold would have done to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import NamedTuple


class Figures(NamedTuple):
    """How long jobs took: percentiles between the two nearest jobs, by straight line, and the longest."""

    kind: str | None
    queue: str | None
    jobs: int
    p50: timedelta
    p95: timedelta
    p99: timedelta
    longest: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long the jobs of a sample that succeeded took."""

    basis: str
    """How the sample was chosen, in words."""
    runs: tuple[Figures, ...]
    """From start to end, by kind; the most frequent kinds."""
    runs_by_queue: tuple[Figures, ...]
    """Likewise by kind and queue; empty where there is no queue."""
    waits: Figures | None
    """From when a job could be claimed to its start, all kinds together; None where nothing tells."""


class ReplayedKind(NamedTuple):
    """What thresholds would have done to the jobs of one kind that ended within a window."""

    kind: str | None
    ended: int
    queued: int
    """Would have been recovered while they waited."""
    running: int
    """Would have been recovered while they ran, and not before."""
    succeeded: int
    """Of both, those that succeeded after all."""

    @property
    def recovered(self) -> int:
        """How many would have been recovered at all."""
        return self.queued + self.running


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What thresholds would have done to a sample of jobs; at most, for a row doesn't keep the signs of life between.

    A job that beat while it ran was never silent for as long as it ran, and what a row held before its last attempt
    is gone.
    """

    since: datetime
    """Jobs that ended since then are counted."""
    basis: str
    """How the sample was chosen, in words."""
    sample: int
    """How many jobs that was."""
    complete: bool
    """The sample is the whole table."""
    kinds: tuple[ReplayedKind, ...]
    """By kind, those most often recovered first."""

    @property
    def total(self) -> ReplayedKind:
        """All kinds together."""
        return _sum(None, self.kinds)


def only(kinds: Sequence[ReplayedKind], pattern: str | None) -> tuple[ReplayedKind, ...]:
    """Return the kinds that a pattern such as `thesis.*` names, all where there is none."""
    named = [each for each in kinds if pattern is None or fnmatchcase(each.kind or "", pattern)]
    return tuple(sorted(named, key=lambda each: (-each.recovered, -each.ended, each.kind or "")))


def by_kind(counts: Sequence[ReplayedKind]) -> tuple[ReplayedKind, ...]:
    """Add up counts of the same kind."""
    together: dict[str | None, list[ReplayedKind]] = {}
    for each in counts:
        together.setdefault(each.kind, []).append(each)
    return tuple(_sum(kind, parts) for kind, parts in together.items())


def _sum(kind: str | None, parts: Sequence[ReplayedKind]) -> ReplayedKind:
    return ReplayedKind(
        kind,
        sum(each.ended for each in parts),
        sum(each.queued for each in parts),
        sum(each.running for each in parts),
        sum(each.succeeded for each in parts),
    )

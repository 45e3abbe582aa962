"""What thresholds would fit, and what one would have done, by what a source's finished jobs tell."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from unstick.domain.errors import InvalidRequestError
from unstick.domain.history import Replayed, only
from unstick.domain.suggestion import Suggestions, suggest
from unstick.pipeline.watched import Watched
from unstick.ports import JobHistory

LATE_WINDOW = timedelta(days=30)
"""Late finishes of so long are taken into account."""

DEFAULT_DAYS = 30
MAX_DAYS = 365


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestionReport:
    """What is proposed for a source, and when."""

    suggestions: Suggestions
    heartbeats: bool
    """Its jobs beat, so that age counts from their last beat and not from their start."""
    at: datetime


async def report_suggestions(watched: Watched) -> SuggestionReport:
    """Propose thresholds for a source.

    Raises:
        InvalidRequestError: the source keeps no history.
    """
    durations = await _history(watched).durations()
    late = await watched.ledger.late_runs(watched.source.name, LATE_WINDOW)
    return SuggestionReport(
        suggestions=suggest(durations, late, watched.policy, watched.source.name),
        heartbeats=watched.source.capabilities.heartbeats,
        at=await watched.source.clock(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOrder:
    """Which thresholds are to be replayed, over which jobs; running jobs by the policy's where nothing is said."""

    days: int = DEFAULT_DAYS
    running_after: timedelta | None = None
    queued_after: timedelta | None = None
    """None leaves waiting jobs alone."""
    kind: str | None = None
    """A pattern, such as `thesis.*`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What the thresholds would have done."""

    running_after: timedelta
    queued_after: timedelta | None
    replayed: Replayed


async def replay(watched: Watched, order: ReplayOrder) -> ReplayReport:
    """Tell what thresholds would have done to the jobs that ended lately.

    Raises:
        InvalidRequestError: the days are out of range, or the source keeps no history.
        ConfigurationError: the table doesn't tell when a job ended.
    """
    if not 1 <= order.days <= MAX_DAYS:
        raise InvalidRequestError(f"days must be from 1 to {MAX_DAYS}, not {order.days}.")
    running_after = watched.policy.running_after if order.running_after is None else order.running_after
    found = await _history(watched).replay(
        timedelta(days=order.days), running_after=running_after, queued_after=order.queued_after
    )
    return ReplayReport(
        running_after=running_after,
        queued_after=order.queued_after,
        replayed=replace(found, kinds=only(found.kinds, order.kind)),
    )


def _history(watched: Watched) -> JobHistory:
    if watched.history is None:
        raise InvalidRequestError(
            f"Source {watched.source.name!r} keeps no history of its jobs; ask another source, such as a SQL table."
        )
    return watched.history

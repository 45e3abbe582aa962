"""Late finishes, for whoever asks how often a recovery was wrong."""

from dataclasses import dataclass

from unstick.domain.aftermath import LateCounts, LateFinish
from unstick.domain.errors import InvalidRequestError
from unstick.pipeline.report import DEFAULT_LIMIT, MAX_LIMIT, RECOVERIES_WINDOW
from unstick.pipeline.watched import Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class LateReport:
    """How many late finishes there were within a day, and the newest ones by name."""

    counts: LateCounts
    newest: tuple[LateFinish, ...]


async def report_late(watched: Watched, limit: int = DEFAULT_LIMIT) -> LateReport:
    """Report the newest late finishes, and count those of the last day.

    Raises:
        InvalidRequestError: the limit is out of range.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequestError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}.")
    ledger, name = watched.ledger, watched.source.name
    counts = await ledger.late_counts(name, RECOVERIES_WINDOW)
    return LateReport(counts=counts, newest=tuple(await ledger.late_finishes(name, limit)))

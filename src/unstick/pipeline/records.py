"""The record, read back: the audit log in pages and as a whole, one operation, and what was done over time."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from unstick.domain.errors import InvalidRequestError, UnknownRecoveryError
from unstick.domain.record import EntryFilter, EntryPage, Recorded, Span
from unstick.domain.undo import Undoable
from unstick.pipeline.report import check_limit
from unstick.pipeline.undo import LARGEST_OPERATION, unknown_operation
from unstick.pipeline.watched import Watched
from unstick.ports import Records

AUDIT_CALL = "audit"
"""What reading the audit log is called in it."""
MOST_EXPORTED = 100_000
_EXPORTED_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStory:
    """What is known of an operation."""

    begun: Recorded
    ended: Recorded | None
    """None where it is under way, or was cut off."""
    jobs: tuple[Undoable, ...]
    """The first jobs that it recovered, each with whether that was undone."""
    more: bool
    """It recovered others besides."""


def kept_records(watched: Watched) -> Records:
    """Return where the record is read back; raise `InvalidRequestError` where it can't be."""
    if watched.records is None:
        raise InvalidRequestError(f"The record of source {watched.source.name!r} can't be read back.")
    return watched.records


async def read_entries(watched: Watched, wanted: EntryFilter, *, limit: int, before: int | None = None) -> EntryPage:
    """Return the newest entries of the audit log that are wanted.

    Raises:
        InvalidRequestError: the limit is out of range, or the record can't be read back.
    """
    check_limit(limit)
    return await kept_records(watched).entries(wanted, before=before, limit=limit)


async def export_entries(watched: Watched, wanted: EntryFilter) -> AsyncIterator[Recorded]:
    """Yield the newest entries that are wanted, `MOST_EXPORTED` at most, without holding more than a page of them."""
    records, before, number = kept_records(watched), None, 0
    while number < MOST_EXPORTED:
        page = await records.entries(wanted, before=before, limit=_EXPORTED_AT_ONCE)
        for entry in page.entries[: MOST_EXPORTED - number]:
            yield entry
        number, before = number + len(page.entries), page.next_before
        if before is None:
            return


async def tell_operation(watched: Watched, operation_id: int, limit: int) -> OperationStory:
    """Tell what an operation was asked to do, what came of it, and the first jobs that it recovered.

    Raises:
        UnknownRecoveryError: there is none of that number.
    """
    name = watched.source.name
    entries = await kept_records(watched).operation(operation_id) if 0 < operation_id <= LARGEST_OPERATION else ()
    if not entries or entries[0].parameters.get("source", name) != name:
        raise UnknownRecoveryError(unknown_operation(operation_id, name))
    page = await watched.ledger.undoable(name, operation_id)
    return OperationStory(
        begun=entries[0],
        ended=entries[1] if len(entries) > 1 else None,
        jobs=page.recoveries[:limit],
        more=len(page.recoveries) > limit or page.last is not None,
    )


async def over_time(watched: Watched, window: timedelta, spans: int) -> Sequence[Span]:
    """Count recoveries and late finishes in so many spans of the window; nothing where no record is kept."""
    if watched.records is None:
        return ()
    return await watched.records.over_time(watched.source.name, window, spans)

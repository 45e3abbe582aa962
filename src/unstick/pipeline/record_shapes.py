"""What is answered about the record: entries of the audit log."""

from typing import Literal

from typing_extensions import TypedDict  # pydantic reads TypedDicts only from here below Python 3.12

from unstick.domain.record import EntryPage, Recorded


class EntryShape(TypedDict):
    """One entry of the audit log.

    `repeats` says how many identical reads between `at` and `last_at` it stands for. The entry that begins an operation
    is `started`; the one that ends it names it in `operation_id`.
    """

    id: int
    at: str
    last_at: str
    repeats: int
    actor: str
    role: str | None
    call: str
    outcome: Literal["started", "done", "refused", "failed"]
    source: str | None
    job_id: str | None
    operation_id: int | None
    parameters: dict[str, object]
    result: dict[str, object]


class AuditShape(TypedDict):
    """Entries, the newest first. Older ones are before `next_before`; it is null where there are none.

    How many entries are looked through for a page is bounded, so it may have few of them, or none, and not be the last.
    """

    entries: list[EntryShape]
    next_before: int | None


def audit_shape(page: EntryPage) -> AuditShape:
    """Render a page of the audit log."""
    return AuditShape(entries=[entry_shape(each) for each in page.entries], next_before=page.next_before)


def entry_shape(entry: Recorded) -> EntryShape:
    """Render an entry of the audit log."""
    return EntryShape(
        id=entry.id,
        at=entry.at.isoformat(),
        last_at=entry.last_at.isoformat(),
        repeats=entry.repeats,
        actor=entry.actor,
        role=entry.role,
        call=entry.call,
        outcome=entry.outcome.value,
        source=entry.source,
        job_id=entry.job_id,
        operation_id=entry.operation_id,
        parameters=dict(entry.parameters),
        result=dict(entry.result),
    )

"""`/audit`: who asked for what, why, and what came of it; in pages and as a whole, in CSV or JSON."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Depends, Query, params
from fastapi.responses import StreamingResponse
from pydantic import Field, WithJsonSchema

from unstick.api.call import Call, CurrentCall
from unstick.api.parameters import EntryNumber, Limit, OutcomeWord, SourceQuery, TrueOrFalse, Word, no_repeats
from unstick.domain.access import Role
from unstick.domain.record import EntryFilter
from unstick.pipeline.record_shapes import AuditShape, EntryShape, audit_shape, entry_shape
from unstick.pipeline.records import AUDIT_CALL, MOST_EXPORTED, export_entries, kept_records, read_entries
from unstick.pipeline.report import DEFAULT_LIMIT

EXPORT_CALL = "audit.export"
ExportFormat = Literal["csv", "json"]
_MEDIA_TYPES: dict[ExportFormat, str] = {"csv": "text/csv; charset=utf-8", "json": "application/x-ndjson"}
_SUFFIXES: dict[ExportFormat, str] = {"csv": "csv", "json": "ndjson"}
_COLUMNS = tuple(EntryShape.__annotations__)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class EntriesQuery(SourceQuery):
    """Which entries of the audit log are meant; what is left out asks nothing."""

    actor: Word = Field(default=None, description="Only what this caller asked for.")
    call: Word = Field(default=None, description="Only this call, such as `jobs.cleanup`.")
    outcome: OutcomeWord = Field(default=None, description="Only what this came of.")
    job: Word = Field(default=None, description="Only what is about this job alone, by its id.")
    all: TrueOrFalse = Field(default=False, description="Calls that only read something, too.")

    @property
    def wanted(self) -> EntryFilter:
        """What an entry must be."""
        return EntryFilter(
            actor=self.actor,
            calls=None if self.call is None else (self.call,),
            outcome=self.outcome,
            job_id=self.job,
            changes=not self.all,
        )


class AuditQuery(EntriesQuery):
    """What `GET /audit` takes."""

    limit: Limit = Field(default=DEFAULT_LIMIT, description="The most entries of a page.")
    before: EntryNumber = Field(default=None, description="`next_before` of the page before.")


class ExportQuery(EntriesQuery):
    """What `GET /audit/export` takes."""

    format: Annotated[ExportFormat, WithJsonSchema({"type": "string", "enum": list(get_args(ExportFormat))})] = Field(
        description="CSV with a line of names, or one JSON object a line."
    )


async def read_audit_log(call: CurrentCall, query: Annotated[AuditQuery, Query()]) -> AuditShape:
    """Read the audit log, the newest entries first."""
    async with call.open(query.source) as watched:
        return audit_shape(await read_entries(watched, query.wanted, limit=query.limit, before=query.before))


async def export_audit_log(call: CurrentCall, query: Annotated[ExportQuery, Query()]) -> StreamingResponse:
    """Send the audit log as a whole, the newest entries first."""
    return await stream_entries(call, query.source, query.wanted, query.format)


async def stream_entries(call: Call, source: str | None, wanted: EntryFilter, form: ExportFormat) -> StreamingResponse:
    """Send the newest entries that are wanted, `MOST_EXPORTED` at most, as they are read."""
    async with call.open(source) as watched:
        kept_records(watched)
        name = watched.source.name
    entries = _entries(call, name, wanted)
    file = f"unstick-audit-{name}.{_SUFFIXES[form]}".encode("ascii", "replace").decode()
    return StreamingResponse(
        _as_csv(entries) if form == "csv" else _as_json(entries),
        media_type=_MEDIA_TYPES[form],
        headers={"Content-Disposition": f'attachment; filename="{file}"'},
    )


async def _entries(call: Call, source: str, wanted: EntryFilter) -> AsyncIterator[EntryShape]:
    async with call.open(source) as watched:
        async for entry in export_entries(watched, wanted):
            yield entry_shape(entry)


async def _as_json(entries: AsyncIterator[EntryShape]) -> AsyncIterator[str]:
    """One JSON object a line, so that no reader must hold them all either."""
    async for entry in entries:
        yield json.dumps(entry, ensure_ascii=False) + "\n"


async def _as_csv(entries: AsyncIterator[EntryShape]) -> AsyncIterator[str]:
    yield _line(list(_COLUMNS))
    async for entry in entries:
        yield _line([_cell(value) for value in entry.values()])


def _cell(value: object) -> str:
    """Write a cell that no spreadsheet takes for a formula: what stands in it may be a caller's."""
    text = "" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _line(cells: list[str]) -> str:
    written = io.StringIO()
    csv.writer(written).writerow(cells)
    return written.getvalue()


def add_audit(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the calls to a router."""
    reading = [needs(Role.VIEWER), Depends(no_repeats)]
    router.add_api_route("/audit", read_audit_log, name=AUDIT_CALL, operation_id="read_audit_log", dependencies=reading)
    router.add_api_route(
        "/audit/export",
        export_audit_log,
        name=EXPORT_CALL,
        operation_id="export_audit_log",
        response_class=StreamingResponse,
        responses={200: {"content": _EXPORTED, "description": f"{MOST_EXPORTED:,} entries at most."}},
        dependencies=reading,
    )


_EXPORTED = {form.partition(";")[0]: {"schema": {"type": "string"}} for form in _MEDIA_TYPES.values()}

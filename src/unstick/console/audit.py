"""`/audit`: who asked for what, why, and what came of it; as pages and as a whole, in CSV or JSON."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response, params
from fastapi.responses import StreamingResponse

from unstick.api.call import Call, CurrentCall
from unstick.api.parameters import no_repeats
from unstick.console.queries import PAGE, AuditQuery
from unstick.console.rendering import render
from unstick.domain.access import Role
from unstick.domain.audit import AuditOutcome
from unstick.domain.record import EntryFilter, Recorded
from unstick.pipeline.records import AUDIT_CALL, MOST_EXPORTED, export_entries, kept_records, read_entries

_FACE = "console."
_COLUMNS = (
    "id", "at", "last_at", "repeats", "actor", "role", "call", "outcome", "source", "job_id", "operation_id",
    "parameters", "result",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _wanted(query: AuditQuery) -> EntryFilter:
    return EntryFilter(
        actor=query.actor,
        calls=None if query.call is None else (query.call,),
        outcome=query.outcome,
        job_id=query.job,
        changes=not query.all,
    )


async def audit(call: CurrentCall, query: Annotated[AuditQuery, Query()]) -> Response:
    """Show the audit log, the newest first."""
    async with call.open(query.source) as watched:
        page = await read_entries(watched, _wanted(query), limit=PAGE, before=query.before)
        source, now = watched.source.name, await watched.source.clock()
    return render(
        call.request,
        "audit.html",
        source=source,
        page=page,
        now=now,
        query=query,
        outcomes=list(AuditOutcome),
        most=MOST_EXPORTED,
        asked=query.model_dump(mode="json", exclude_none=True, exclude={"before"}),
    )


async def export(
    call: CurrentCall, form: Literal["csv", "json"], query: Annotated[AuditQuery, Query()]
) -> StreamingResponse:
    """Send the newest entries that are wanted, as they are read."""
    async with call.open(query.source) as watched:
        kept_records(watched)
        source = watched.source.name
    lines = _as_csv(call, source, query) if form == "csv" else _as_json(call, source, query)
    media_type = "text/csv; charset=utf-8" if form == "csv" else "application/x-ndjson"
    name = f"unstick-audit-{source}.{'csv' if form == 'csv' else 'ndjson'}"
    headers = {"Content-Disposition": f'attachment; filename="{name.encode("ascii", "replace").decode()}"'}
    return StreamingResponse(lines, media_type=media_type, headers=headers)


async def _entries(call: Call, source: str, query: AuditQuery) -> AsyncIterator[dict[str, object]]:
    async with call.open(source) as watched:
        async for entry in export_entries(watched, _wanted(query)):
            yield _values(entry)


async def _as_json(call: Call, source: str, query: AuditQuery) -> AsyncIterator[str]:
    """One JSON object a line, so that no reader must hold them all either."""
    async for values in _entries(call, source, query):
        yield json.dumps(values, ensure_ascii=False) + "\n"


async def _as_csv(call: Call, source: str, query: AuditQuery) -> AsyncIterator[str]:
    yield _line(list(_COLUMNS))
    async for values in _entries(call, source, query):
        yield _line([_cell(values[name]) for name in _COLUMNS])


def _values(entry: Recorded) -> dict[str, object]:
    instants = {"at": entry.at.isoformat(), "last_at": entry.last_at.isoformat()}
    return {name: getattr(entry, name) for name in _COLUMNS} | instants | {"outcome": entry.outcome.value}


def _cell(value: object) -> str:
    """Write a cell that no spreadsheet takes for a formula: what stands in it may be a caller's."""
    text = "" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _line(cells: list[str]) -> str:
    written = io.StringIO()
    csv.writer(written).writerow(cells)
    return written.getvalue()


def add_audit(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the pages to a router."""
    reading = [needs(Role.VIEWER), Depends(no_repeats)]
    router.add_api_route("/audit", audit, name=_FACE + AUDIT_CALL, dependencies=reading)
    router.add_api_route(
        "/audit/{form}", export, name="console.audit.export", dependencies=reading, response_class=StreamingResponse
    )

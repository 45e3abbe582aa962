"""`/audit`: who asked for what, why, and what came of it; as pages and as a whole, in CSV or JSON."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, params
from fastapi.responses import StreamingResponse

from unstick.api.audit import EXPORT_CALL, ExportFormat, stream_entries
from unstick.api.call import CurrentCall
from unstick.api.parameters import no_repeats
from unstick.console.queries import PAGE, AuditQuery
from unstick.console.rendering import render
from unstick.domain.access import Role
from unstick.domain.audit import AuditOutcome
from unstick.domain.record import EntryFilter
from unstick.pipeline.records import AUDIT_CALL, MOST_EXPORTED, read_entries

_FACE = "console."


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


async def export(call: CurrentCall, form: ExportFormat, query: Annotated[AuditQuery, Query()]) -> StreamingResponse:
    """Send the newest entries that are wanted, as they are read."""
    return await stream_entries(call, query.source, _wanted(query), form)


def add_audit(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the pages to a router."""
    reading = [needs(Role.VIEWER), Depends(no_repeats)]
    router.add_api_route("/audit", audit, name=_FACE + AUDIT_CALL, dependencies=reading)
    router.add_api_route(
        "/audit/{form}", export, name=_FACE + EXPORT_CALL, dependencies=reading, response_class=StreamingResponse
    )

"""`/operations`: what an operation did, job by job, and its undo; `/sweeps`: the operations of a source."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, params

from unstick.api.call import CurrentCall
from unstick.api.parameters import OperationNumber, no_repeats
from unstick.console.forms import Form, read_form
from unstick.console.queries import PAGE, ReasonForm, SweepsQuery
from unstick.console.rendering import redirect, render
from unstick.domain.access import Role
from unstick.domain.audit import RECOVER_CALL, AuditOutcome
from unstick.domain.record import EntryFilter, Recorded
from unstick.pipeline.applying import APPLY_CALL
from unstick.pipeline.records import read_entries, tell_operation
from unstick.pipeline.sweep import CLEANUP_CALL
from unstick.pipeline.undo import UNDO_CALL, UndoOrder, undo

_SWEEPS = EntryFilter(calls=(CLEANUP_CALL, APPLY_CALL, RECOVER_CALL, UNDO_CALL), changes=True)
_MOST_JOBS = 100


async def show_operation(call: CurrentCall, source: str, operation_id: OperationNumber) -> Response:
    """Show what an operation did."""
    async with call.open(source) as watched:
        told = await tell_operation(watched, operation_id, _MOST_JOBS)
        now = await watched.source.clock()
    return render(
        call.request,
        "operation.html",
        source=source,
        told=told,
        now=now,
        is_undo=told.begun.call == UNDO_CALL,
        undoable=sum(not each.undone for each in told.jobs),
    )


async def undo_operation(call: CurrentCall, source: str, operation_id: OperationNumber, form: Form) -> Response:
    """Put back the jobs of an operation that still are as it left them."""
    asked = read_form(form, ReasonForm)
    async with call.open(source) as watched:
        call.swept = True
        order = UndoOrder(actor=call.actor, role=call.role, operation_id=operation_id, reason=asked.reason)
        report = await undo(watched, order)
    return redirect(call.request, "console.operations.read", source=source, operation_id=report.operation_id)


async def sweeps(call: CurrentCall, query: Annotated[SweepsQuery, Query()]) -> Response:
    """List sweeps, cleanups, single recoveries and undos, the newest first."""
    async with call.open(query.source) as watched:
        page = await read_entries(watched, _SWEEPS, limit=2 * PAGE, before=query.before)
        now = await watched.source.clock()
        watch = None if watched.watches is None else await watched.watches.find(watched.source.name)
        source = watched.source.name
    ended = {each.operation_id for each in page.entries}
    shown = [each for each in page.entries if _is_told(each, ended)]
    return render(call.request, "sweeps.html", source=source, entries=shown, page=page, now=now, watch=watch)


def _is_told(entry: Recorded, ended: set[int | None]) -> bool:
    """Tell whether an entry says most of its operation; a preview is none, but a sweep that was refused is told."""
    if entry.outcome is AuditOutcome.STARTED:
        return entry.id not in ended
    return entry.operation is not None or entry.outcome is not AuditOutcome.DONE


def add_operations(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the pages to a router."""
    operation = "/operations/{source}/{operation_id}"
    reading = [needs(Role.VIEWER), Depends(no_repeats)]
    router.add_api_route(operation, show_operation, name="console.operations.read", dependencies=reading)
    router.add_api_route(
        f"{operation}/undo",
        undo_operation,
        methods=["POST"],
        name="console.operations.undo",
        dependencies=[needs(Role.OPERATOR)],
    )
    router.add_api_route("/sweeps", sweeps, name="console.sweeps", dependencies=reading)

"""`/operations/{operation_id}/undo` and `/jobs/{source}/{job_id}/undo`: put jobs back as a recovery found them."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, params
from pydantic import BaseModel, ConfigDict, Field

from unstick.api.call import Call, CurrentCall
from unstick.api.parameters import NO_NUL, OperationNumber, SourceQuery, TrueOrFalse, Word, no_body, no_repeats
from unstick.domain.access import Role
from unstick.domain.job import JobId
from unstick.pipeline.shapes import UndoShape, undo_shape
from unstick.pipeline.undo import UNDO_CALL, UndoOrder, undo

_LONGEST_ID = 1024


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: Word = Field(default=None, description="Why, for the audit log.")
    dry_run: TrueOrFalse = Field(default=False, description="Count what would be undone, and change nothing.")


class UndoJobQuery(_Asked):
    """What `POST /jobs/{source}/{job_id}/undo` takes."""


class UndoOperationQuery(SourceQuery, _Asked):
    """What `POST /operations/{operation_id}/undo` takes."""

    job: Word = Field(default=None, description="Only this job of the operation.")


async def undo_operation(
    call: CurrentCall,
    operation_id: Annotated[OperationNumber, Path(description="The cleanup's `operation_id`.")],
    query: Annotated[UndoOperationQuery, Query()],
) -> UndoShape:
    """Put back the jobs of a cleanup that still are as it left them; `failures` says of each other one why not."""
    return await _undo(call, query.source, query, operation_id, query.job)


async def undo_job(
    call: CurrentCall,
    source: Annotated[str, Path(description="The source's name.", pattern=NO_NUL)],
    job_id: Annotated[str, Path(max_length=_LONGEST_ID, description="The job's id.", pattern=NO_NUL)],
    query: Annotated[UndoJobQuery, Query()],
) -> UndoShape:
    """Put a job back as its last recovery found it, if it still is as that left it; `failures` says why not."""
    return await _undo(call, source, query, None, job_id)


def add_undo(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the calls to a router."""
    guards = [needs(Role.OPERATOR), Depends(no_repeats), Depends(no_body)]
    router.add_api_route(
        "/operations/{operation_id}/undo",
        undo_operation,
        methods=["POST"],
        name=UNDO_CALL,
        operation_id="undo_operation",
        dependencies=guards,
    )
    router.add_api_route(
        "/jobs/{source}/{job_id}/undo",
        undo_job,
        methods=["POST"],
        name=UNDO_CALL,
        operation_id="undo_job",
        dependencies=guards,
    )


async def _undo(
    call: Call, source: str | None, asked: _Asked, operation_id: int | None, job_id: JobId | None
) -> UndoShape:
    async with call.open(source) as watched:
        call.swept = not asked.dry_run
        report = await undo(
            watched,
            UndoOrder(
                actor=call.actor,
                role=call.role,
                operation_id=operation_id,
                job_id=job_id,
                reason=asked.reason,
                dry_run=asked.dry_run,
            ),
        )
    shape = undo_shape(report)
    if "would_undo" in shape:
        call.result["would_undo"] = shape["would_undo"]
    return shape

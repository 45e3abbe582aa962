"""`/jobs/{source}/{job_id}`: the story of one job, its recovery, and its snooze."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, params
from pydantic import BaseModel, ConfigDict, Field

from unstick.api.call import CurrentCall
from unstick.api.parameters import NO_NUL, ActionWord, SnoozeMinutes, SourceQuery, Why, no_body, no_repeats
from unstick.domain.access import Role
from unstick.domain.audit import RECOVER_CALL, SNOOZE_CALL, UNSNOOZE_CALL
from unstick.domain.snooze import LONGEST_REASON
from unstick.pipeline.job_shapes import (
    RecoveredShape,
    SnoozedShape,
    SnoozesShape,
    StoryShape,
    recovered_shape,
    snooze_shape,
    snoozed_shape,
    story_shape,
)
from unstick.pipeline.recovering import RecoverOrder, recover_job
from unstick.pipeline.snoozing import SnoozeOrder, live_snoozes, snooze
from unstick.pipeline.story import STORY_CALL, tell_story

_LONGEST_ID = 1024
_SNOOZES_CALL = "snoozes"

SourceName = Annotated[str, Path(description="The source's name.", pattern=NO_NUL)]
JobName = Annotated[
    str, Path(max_length=_LONGEST_ID, description="The job's id, a number as its digits.", pattern=NO_NUL)
]


class _Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReasonQuery(_Nothing):
    """What ending a snooze takes."""

    reason: Why = Field(default=None, description="Why, for the audit log and the job's story.")


class RecoverQuery(ReasonQuery):
    """What a recovery takes."""

    action: ActionWord = Field(default=None, description="What is done to the job; left out, as its policy says.")


class SnoozeQuery(_Nothing):
    """What a snooze takes."""

    minutes: SnoozeMinutes = Field(description="How long the job is left alone from now.")
    reason: Annotated[str, Field(min_length=1, max_length=LONGEST_REASON, pattern=NO_NUL)] = Field(
        description="Why, for whoever finds it stuck, the audit log and the job's story."
    )


async def tell_job_story(
    call: CurrentCall, source: SourceName, job_id: JobName, _query: Annotated[_Nothing, Query()]
) -> StoryShape:
    """Tell how a job stands now and why, what a sweep would do to it, and all that is known of it in time order."""
    async with call.open(source) as watched:
        return story_shape(await tell_story(watched, job_id), watched.policy.rules)


async def recover_one_job(
    call: CurrentCall, source: SourceName, job_id: JobName, query: Annotated[RecoverQuery, Query()]
) -> RecoveredShape:
    """Recover this job if it is stuck now, even one that its policy leaves to a person or that is snoozed."""
    order = RecoverOrder(actor=call.actor, role=call.role, job_id=job_id, action=query.action, reason=query.reason)
    async with call.open(source) as watched:
        call.swept = True
        return recovered_shape(source, await recover_job(watched, order))


async def snooze_job(
    call: CurrentCall, source: SourceName, job_id: JobName, query: Annotated[SnoozeQuery, Query()]
) -> SnoozedShape:
    """Have this job left alone from now on for so long: no sweep or report takes it for stuck until then."""
    lasting = timedelta(minutes=query.minutes)
    order = SnoozeOrder(actor=call.actor, role=call.role, job_id=job_id, reason=query.reason, lasting=lasting)
    return await _snooze(call, source, order)


async def unsnooze_job(
    call: CurrentCall, source: SourceName, job_id: JobName, query: Annotated[ReasonQuery, Query()]
) -> SnoozedShape:
    """End this job's snooze; one that isn't snoozed stays so."""
    return await _snooze(
        call, source, SnoozeOrder(actor=call.actor, role=call.role, job_id=job_id, reason=query.reason)
    )


async def list_snoozes(call: CurrentCall, query: Annotated[SourceQuery, Query()]) -> SnoozesShape:
    """List the jobs of a source that are snoozed, those whose snooze ends first before others."""
    async with call.open(query.source) as watched:
        now = await watched.source.clock()
        found = await live_snoozes(watched, now)
    return SnoozesShape(snoozes=[snooze_shape(each) for each in found], read_at=now.isoformat())


async def _snooze(call: CurrentCall, source: str, order: SnoozeOrder) -> SnoozedShape:
    async with call.open(source) as watched:
        shape = snoozed_shape(source, await snooze(watched, order))
        call.swept = True
    return shape


def add_job(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the calls to a router."""
    reading = [needs(Role.VIEWER), Depends(no_repeats)]
    recovering = [needs(Role.OPERATOR), Depends(no_repeats), Depends(no_body)]
    snoozing = [needs(Role.ADMIN), Depends(no_repeats), Depends(no_body)]
    job = "/jobs/{source}/{job_id}"
    router.add_api_route(job, tell_job_story, name=STORY_CALL, operation_id="tell_job_story", dependencies=reading)
    router.add_api_route(
        f"{job}/recover",
        recover_one_job,
        methods=["POST"],
        name=RECOVER_CALL,
        operation_id="recover_job",
        dependencies=recovering,
    )
    router.add_api_route(
        f"{job}/snooze",
        snooze_job,
        methods=["POST"],
        name=SNOOZE_CALL,
        operation_id="snooze_job",
        dependencies=snoozing,
    )
    router.add_api_route(
        f"{job}/snooze",
        unsnooze_job,
        methods=["DELETE"],
        name=UNSNOOZE_CALL,
        operation_id="unsnooze_job",
        dependencies=snoozing,
    )
    router.add_api_route(
        "/snoozes", list_snoozes, name=_SNOOZES_CALL, operation_id="list_snoozes", dependencies=reading
    )

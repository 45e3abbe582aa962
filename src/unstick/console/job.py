"""`/jobs/{source}/{job_id}`: one job, how it stands and why, what can be done about it, and all that happened to it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response, params
from pydantic import BaseModel, ConfigDict

from unstick.api.call import Call, CurrentCall
from unstick.console.forms import Form, read_form
from unstick.console.queries import ReasonForm, RecoverForm, SnoozeForm
from unstick.console.recent import Recent
from unstick.console.rendering import redirect, render, words_for
from unstick.console.sentences import event_sentence, story_sentence
from unstick.domain.access import Role
from unstick.domain.audit import RECOVER_CALL, SNOOZE_CALL, UNSNOOZE_CALL
from unstick.domain.history import Durations, Figures
from unstick.domain.job import JobId
from unstick.domain.recovery import Outcome
from unstick.pipeline.recovering import RecoverOrder, recover_job
from unstick.pipeline.snoozing import SnoozeOrder, snooze
from unstick.pipeline.story import STORY_CALL, Story, tell_story
from unstick.pipeline.undo import UNDO_CALL, UndoOrder, undo
from unstick.pipeline.watched import Watched

_FACE = "console."


class JobQuery(BaseModel):
    """What a job's page takes: what came of the recovery that led to it."""

    model_config = ConfigDict(extra="forbid")

    came_to: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """How long a job has run, beside how long those of its kind usually do."""

    elapsed: timedelta
    figures: Figures | None

    @property
    def share(self) -> float | None:
        """How much of what 95 of 100 take it has taken, in percent, None where that isn't known."""
        if self.figures is None or not self.figures.p95:
            return None
        return 100 * (self.elapsed / self.figures.p95)


async def _usual(watched: Watched, story: Story, recent: Recent[Durations]) -> Usual | None:
    row, history = None if story.verdict is None else story.verdict.row, watched.history
    job = None if row is None else row.job
    if row is None or job is None or job.started_at is None or history is None:
        return None
    found = (await recent.get(watched.source.name, history.durations)).runs
    ended = row.read_at if job.completed_at is None else job.completed_at
    figures = next((each for each in found if each.kind == job.kind), None)
    return Usual(elapsed=ended - job.started_at, figures=figures)


async def recover_one(call: CurrentCall, source: str, job_id: str, form: Form) -> Response:
    """Recover this job if it is stuck now."""
    asked = read_form(form, RecoverForm)
    order = RecoverOrder(actor=call.actor, role=call.role, job_id=job_id, action=asked.action, reason=asked.reason)
    async with call.open(source) as watched:
        call.swept = True
        report = await recover_job(watched, order)
    return _back(call, source, report.job_id, {"came_to": report.outcome.value})


async def snooze_one(call: CurrentCall, source: str, job_id: str, form: Form) -> Response:
    """Have this job left alone from now on for so long."""
    asked = read_form(form, SnoozeForm)
    lasting = timedelta(minutes=asked.minutes)
    return await _snooze(
        call,
        source,
        SnoozeOrder(actor=call.actor, role=call.role, job_id=job_id, reason=asked.reason, lasting=lasting),
    )


async def unsnooze_one(call: CurrentCall, source: str, job_id: str, form: Form) -> Response:
    """End this job's snooze."""
    asked = read_form(form, ReasonForm)
    return await _snooze(
        call, source, SnoozeOrder(actor=call.actor, role=call.role, job_id=job_id, reason=asked.reason)
    )


async def undo_one(call: CurrentCall, source: str, job_id: str, form: Form) -> Response:
    """Put this job back as its last recovery found it, if it still is as that left it."""
    asked = read_form(form, ReasonForm)
    async with call.open(source) as watched:
        call.swept = True
        order = UndoOrder(actor=call.actor, role=call.role, job_id=job_id, reason=asked.reason)
        report = await undo(watched, order)
    return redirect(call.request, "console.operations.read", source=source, operation_id=report.operation_id)


async def _snooze(call: Call, source: str, order: SnoozeOrder) -> Response:
    async with call.open(source) as watched:
        report = await snooze(watched, order)
        call.swept = True
    return _back(call, source, report.job_id, {})


def _back(call: Call, source: str, job_id: JobId, query: dict[str, str]) -> Response:
    return redirect(call.request, _FACE + STORY_CALL, query, source=source, job_id=job_id)


def add_job(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the pages to a router; an id may hold any character, and so it comes last."""
    recent = Recent[Durations]()

    async def show_job(call: CurrentCall, source: str, job_id: str, query: Annotated[JobQuery, Query()]) -> Response:
        """Show a job."""
        words = words_for(call.request)
        async with call.open(source) as watched:
            story = await tell_story(watched, job_id)
            history = await watched.ledger.history(source, story.job_id)
            usual = await _usual(watched, story, recent)
            able = watched.source.capabilities
        return render(
            call.request,
            "job.html",
            source=source,
            story=story,
            verdict=story.verdict,
            job=None if story.verdict is None else story.verdict.row.job,
            sentence_of_story=story_sentence(words, story),
            events=[(event, event_sentence(words, event)) for event in story.events],
            undoable=next((operation for operation, undone in history if not undone), None),
            was_recovered=bool(history),
            usual=usual,
            able=able,
            came_to=query.came_to,
        )

    changes = (
        ("recover", recover_one, RECOVER_CALL, Role.OPERATOR),
        ("snooze", snooze_one, SNOOZE_CALL, Role.ADMIN),
        ("unsnooze", unsnooze_one, UNSNOOZE_CALL, Role.ADMIN),
        ("undo", undo_one, UNDO_CALL, Role.OPERATOR),
    )
    router.add_api_route(
        "/jobs/{source}/{job_id:path}", show_job, name=_FACE + STORY_CALL, dependencies=[needs(Role.VIEWER)]
    )
    for word, change, name, role in changes:
        router.add_api_route(
            f"/{word}/{{source}}/{{job_id:path}}",
            change,
            methods=["POST"],
            name=_FACE + name,
            dependencies=[needs(role)],
        )

"""The demo platform: a small FastAPI application whose jobs live in a table and run in background tasks.

It is what many such platforms are, and its jobs get stuck in the two ways theirs do.

**The process dies in the middle of a job.** Nobody is left to write to the row: it stays `running` for ever.

**A row without a task.** `POST /generate` writes two things that no transaction joins: the row, committed at once so
that the client can be given its number, and the background task, which Starlette starts after the response was sent.
Whatever happens in between (the client hangs up, a worker is restarted, a line raises) leaves a row that no task
belongs to: it stays `queued` for ever. Here a line raises: the answer's `Link` header bears the title, headers are
Latin-1, and a title with a dash or a curly quote isn't. The client gets 500, and asks again without the dash.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from html import escape
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from unstick.demo.database import AIGenerationJob, Sessions, opened
from unstick.demo.text import Kind
from unstick.demo.work import run_due, run_first

URL_VARIABLE = "PLATFORM_DATABASE_URL"
_COLUMNS = ("id", "job_type", "status", "progress", "attempt", "created_at", "started_at", "updated_at", "completed_at")

router = APIRouter()


class Order(BaseModel):
    """What a user asks for."""

    job_type: Kind
    prompt: str = Field(min_length=1, max_length=2000)
    title: str = Field(default="Untitled", max_length=200, pattern=r'^[^"\r\n]*$')
    size: Annotated[int, Field(ge=2, le=10_000, description="Sentences to read; time grows with its square.")] = 200
    user_id: str = Field(default="demo", max_length=64)


class JobView(BaseModel):
    """A job as the platform's users see it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    user_id: str
    job_type: str
    status: str
    prompt: str
    size: int
    result: str | None
    progress: int
    attempt: int
    tokens_used: int
    cost: float
    success: bool | None
    error_message: str | None
    created_at: datetime
    scheduled_at: datetime | None
    started_at: datetime | None
    updated_at: datetime
    completed_at: datetime | None


def create_app(url: str | None = None) -> FastAPI:
    """Make the platform on the database at a URL, or else at that of the environment."""
    database = url or os.environ[URL_VARIABLE]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(database) as sessions, _running_due(sessions):
            app.state.sessions = sessions
            yield

    app = FastAPI(title="Demo platform", lifespan=lifespan)
    app.include_router(router)
    return app


@asynccontextmanager
async def _running_due(sessions: Sessions) -> AsyncIterator[None]:
    runner = asyncio.create_task(run_due(sessions))
    try:
        yield
    finally:
        runner.cancel()
        with suppress(asyncio.CancelledError):
            await runner


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


Database = Annotated[Sessions, Depends(_sessions)]


@router.post("/generate", status_code=202)
async def generate(order: Order, sessions: Database, tasks: BackgroundTasks, response: Response) -> JobView:
    """Order a text; it is written after the answer was sent."""
    job = AIGenerationJob(**order.model_dump(mode="json", exclude={"title"}))
    async with sessions.begin() as session:
        session.add(job)
    # From here to the end of the answer the row exists and its task doesn't.
    response.headers["Link"] = f'</jobs/{job.id}>; rel="monitor"; title="{order.title}"'
    tasks.add_task(run_first, sessions, job.id)
    return JobView.model_validate(job)


@router.get("/jobs")
async def list_jobs(sessions: Database, status: str | None = None, limit: int = 100) -> list[JobView]:
    """List the newest jobs."""
    return [JobView.model_validate(job) for job in await _newest(sessions, status, limit)]


@router.get("/jobs/{job_id}")
async def show_job(job_id: int, sessions: Database) -> JobView:
    """Show one job with its result."""
    async with sessions() as session:
        job = await session.get(AIGenerationJob, job_id)
    if job is None:
        raise HTTPException(404, f"There is no job {job_id}.")
    return JobView.model_validate(job)


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def index(sessions: Database) -> str:
    """Show the newest jobs as a page."""
    rows = "".join(_row("td", [getattr(job, name) for name in _COLUMNS]) for job in await _newest(sessions, None, 50))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
        "<title>Demo platform</title><style>body{font:14px system-ui}td,th{padding:2px 12px;text-align:left}</style>"
        f"<h1>Jobs</h1><table>{_row('th', _COLUMNS)}{rows}</table></html>"
    )


def _row(tag: str, cells: Sequence[object]) -> str:
    shown = (
        "" if cell is None else escape(f"{cell:%H:%M:%S}" if isinstance(cell, datetime) else str(cell))
        for cell in cells
    )
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in shown)}</tr>"


async def _newest(sessions: Sessions, status: str | None, limit: int) -> Sequence[AIGenerationJob]:
    wanted = select(AIGenerationJob).order_by(AIGenerationJob.id.desc()).limit(limit)
    if status is not None:
        wanted = wanted.where(AIGenerationJob.status == status)
    async with sessions() as session:
        return (await session.scalars(wanted)).all()

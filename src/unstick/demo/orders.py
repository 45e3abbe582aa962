"""What users order of the demo platform and see of it, whichever way it runs its jobs."""

from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from unstick.demo.database import Sessions
from unstick.demo.text import Kind


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
    worker: str | None
    tokens_used: int
    cost: float
    success: bool | None
    error_message: str | None
    created_at: datetime
    scheduled_at: datetime | None
    started_at: datetime | None
    updated_at: datetime
    completed_at: datetime | None


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


Database = Annotated[Sessions, Depends(_sessions)]


def link(job_id: int, title: str) -> str:
    """Return the `Link` header that says where a job is to be seen; headers are Latin-1, and not every title is."""
    return f'</jobs/{job_id}>; rel="monitor"; title="{title}"'

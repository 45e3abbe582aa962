"""Every error as RFC 9457 `application/problem+json`: what happened and what to do, and nothing of our insides."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from unstick.api.words import said
from unstick.domain.errors import (
    ConfigurationError,
    InvalidRequestError,
    NothingToUndoError,
    NotStuckError,
    PendingChangesError,
    PlanRefusedError,
    RecoveryStoppedError,
    SignInRefusedError,
    SourceUnavailableError,
    TooManyFailuresError,
    TooManySnoozesError,
    UnknownCredentialError,
    UnknownJobError,
    UnknownPlanError,
    UnknownRecoveryError,
    UnstickError,
)
from unstick.domain.wording import Phrase

MEDIA_TYPE = "application/problem+json"
CHALLENGE = {"WWW-Authenticate": "Bearer"}

_MOST_ERRORS = 20
_UNEXPECTED = Phrase("Something went wrong that is not the caller's doing. The service's log says more.")
_SENTENCES = {
    404: Phrase("There is nothing at this address."),
    405: Phrase("This address does not take that method."),
}

_logger = logging.getLogger("unstick")


class RefusedError(HTTPException):
    """A refusal that knows whom it refuses, so that the audit log can name them."""

    def __init__(self, status_code: int, detail: str, *, actor: str | None = None, role: str | None = None) -> None:
        super().__init__(
            status_code, detail, headers=dict(CHALLENGE) if status_code == HTTPStatus.UNAUTHORIZED else None
        )
        self.actor = actor
        self.role = role


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as the caller reads it."""

    status: int
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, object] = field(default_factory=dict)
    """What this kind of problem tells beyond the standard members."""

    @property
    def failed(self) -> bool:
        """Whether it is the service's doing, and not the caller's."""
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR

    def response(self) -> JSONResponse:
        """Render it."""
        body = {"type": "about:blank", "title": _title(self.status), "status": self.status, "detail": self.detail}
        return JSONResponse({**body, **self.members}, self.status, dict(self.headers), MEDIA_TYPE)


def as_json(request: Request, problem: Problem) -> JSONResponse:
    """Show a problem to a program."""
    del request
    return problem.response()


def says_it_all(error: BaseException | None) -> bool:
    """Tell whether a source can't be used, which each call meets, and whose sentence tells what to do."""
    return isinstance(error, SourceUnavailableError | ConfigurationError) or (
        isinstance(error, RecoveryStoppedError) and says_it_all(error.__cause__)
    )


def log_failure(sentence: str, error: Exception) -> None:
    """Log what a call failed by: a source that can't be used in one line, anything else with its traceback."""
    _logger.error("%s", sentence, exc_info=None if says_it_all(error) else error)


def problem_of(error: Exception) -> Problem:
    """Say any error as a problem; one that nobody foresaw is told in general words only, so log it."""
    match error:
        case RequestValidationError():
            return _invalid([_field_error(found) for found in error.errors()[:_MOST_ERRORS]])
        case StarletteHTTPException():
            return _http_problem(error)
        case InvalidRequestError():
            return _invalid([{"loc": ["query"], "msg": str(error)}])
        case RecoveryStoppedError():
            return _stopped(error)
        case UnstickError():
            later = {"Retry-After": str(error.seconds)} if isinstance(error, TooManyFailuresError) else {}
            return Problem(status=_status_of(error), detail=_message(error), headers=later)
        case _:
            return Problem(status=500, detail=_UNEXPECTED)


def _message(error: UnstickError) -> str:
    """Return what an error says, as a phrase where it is one: `str` would make plain English of it."""
    said_so: object = error.args[0] if error.args else None
    return said_so if isinstance(said_so, Phrase) else str(error)


def _status_of(error: BaseException | None) -> int:
    match error:
        case SourceUnavailableError() | ConfigurationError():
            return 503
        case SignInRefusedError():
            return 401
        case TooManyFailuresError():
            return 429
        case UnknownRecoveryError() | UnknownJobError() | UnknownPlanError() | UnknownCredentialError():
            return 404
        case (
            PendingChangesError() | NothingToUndoError() | NotStuckError() | TooManySnoozesError() | PlanRefusedError()
        ):
            return 409
        case _:
            return 500


def _stopped(error: RecoveryStoppedError) -> Problem:
    detail = str(error)
    cause = error.__cause__
    if cause is not None and not isinstance(cause, UnstickError):
        # What went wrong inside is the log's to tell; what became of the jobs is everybody's.
        detail = detail.replace(str(cause), "an unexpected error.") if str(cause) else detail
    return Problem(status=_status_of(cause), detail=detail, members={"recovered": error.recovered})


def _http_problem(error: StarletteHTTPException) -> Problem:
    phrase = _title(error.status_code)
    said_so: object = error.detail
    detail = said_so if isinstance(said_so, str) and said_so else phrase
    if detail == phrase:
        detail = _SENTENCES.get(error.status_code, f"{phrase}.")
    challenge = CHALLENGE if error.status_code == HTTPStatus.UNAUTHORIZED else {}
    return Problem(status=error.status_code, detail=detail, headers={**challenge, **(error.headers or {})})


def _invalid(errors: Sequence[Mapping[str, object]]) -> Problem:
    detail = " ".join(_sentence(found) for found in errors) or "The request is not valid."
    return Problem(status=422, detail=detail, members={"errors": list(errors)})


def _field_error(found: Mapping[str, Any]) -> dict[str, object]:
    """Keep where and what; the input stays out, for it may be a secret in the wrong place."""
    loc = [part if isinstance(part, int) else said(part) for part in found["loc"]]
    if found.get("type") == "extra_forbidden":
        return {"loc": loc, "msg": "is not a parameter of this call"}
    return {"loc": loc, "msg": str(found["msg"]).removeprefix("Value error, ")}


def _sentence(found: Mapping[str, Any]) -> str:
    field_name = ".".join(str(part) for part in found["loc"][1:])
    message = f"{field_name}: {found['msg']}" if field_name else str(found["msg"])
    return message if message.endswith(".") else f"{message}."


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened, and what to do."},
    },
}

_ERRORS = {
    "type": "array",
    "description": "What is wrong with each parameter.",
    "items": {
        "type": "object",
        "required": ["loc", "msg"],
        "properties": {
            "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
            "msg": {"type": "string"},
        },
    },
}
_RECOVERED = {
    "type": "integer",
    "description": "Only where a cleanup stopped on its way: how many jobs it had recovered, which stay recovered.",
}


def _documented(description: str, **members: Mapping[str, Any]) -> dict[str, Any]:
    # Inline, since a router can't add a component to the schema of the app that includes it.
    schema = {**_SCHEMA, "properties": {**_SCHEMA["properties"], **members}}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {
        **_documented("No token, or one that is not valid."),
        "headers": {"WWW-Authenticate": {"schema": {"type": "string"}}},
    },
    403: _documented("A valid token whose role does not allow the call."),
    404: _documented("There is no such source, job, operation, recovery, plan or token."),
    409: _documented(
        "As things stand it can't be done: the job isn't stuck, nothing is left to undo, the plan was changed, "
        "expired or was applied, or the session given to Unstick holds other changes."
    ),
    422: _documented("A parameter that means nothing; nothing was changed.", errors=_ERRORS),
    500: _documented("An error of the service's own.", recovered=_RECOVERED),
    503: _documented("A database doesn't answer, or the audit log can't be written.", recovered=_RECOVERED),
}
"""Every status but success that a call can be answered with, for OpenAPI."""

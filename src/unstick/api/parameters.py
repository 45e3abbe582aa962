"""What calls take: nothing unknown, nothing twice, nothing half understood may change a job."""

import re
from collections import Counter
from typing import Annotated, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from unstick.domain.access import LONGEST_TOKEN
from unstick.domain.audit import AuditOutcome
from unstick.domain.diagnosis import STUCK, Reason
from unstick.domain.policy import MAX_THRESHOLD_MINUTES
from unstick.domain.recovery import CHANGES, Action
from unstick.domain.snooze import LONGEST_REASON
from unstick.pipeline.history import MAX_DAYS
from unstick.pipeline.report import MAX_LIMIT
from unstick.pipeline.undo import LARGEST_OPERATION

_LONGEST_WORD = 2000
_EMPTY_BODIES = (b"", b"{}", b"null")


def _whole_number(most: int) -> tuple[BeforeValidator, WithJsonSchema]:
    def parse(sent: object) -> int:
        number = int(sent) if isinstance(sent, str) and re.fullmatch("[0-9]{1,19}", sent) else 0
        if not 1 <= number <= most:
            raise ValueError(f"must be a whole number from 1 to {most}")
        return number

    return BeforeValidator(parse), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": most})


def _true_or_false(sent: object) -> bool:
    word = str(sent).lower()
    if word not in ("true", "false"):
        raise ValueError("must be true or false")
    return word == "true"


_FOUND = tuple(each for each in Reason if each in STUCK and each is not Reason.POISON)
"""Why a job can be found stuck; that it is poison is decided only when it would be recovered once more."""


def _reason(sent: object) -> object:
    if sent is not None and sent not in _FOUND:
        raise ValueError(f"must be one of {', '.join(_FOUND)}")
    return sent


def _change(sent: object) -> object:
    if isinstance(sent, str) and sent not in CHANGES:
        raise ValueError(f"must be {' or '.join(CHANGES)}")
    return sent


# None stands for a parameter that was left out; nobody can send it, so OpenAPI doesn't offer it.
ThresholdMinutes = Annotated[int | None, *_whole_number(MAX_THRESHOLD_MINUTES)]
SnoozeMinutes = Annotated[int, *_whole_number(MAX_THRESHOLD_MINUTES)]
Limit = Annotated[int, *_whole_number(MAX_LIMIT)]
ActionWord = Annotated[
    Literal[Action.MARK_FAILED, Action.RETRY] | None,
    BeforeValidator(_change),
    WithJsonSchema({"type": "string", "enum": list(CHANGES)}),
]
StuckReason = Annotated[
    Reason | None, BeforeValidator(_reason), WithJsonSchema({"type": "string", "enum": list(_FOUND)})
]
OutcomeWord = Annotated[AuditOutcome | None, WithJsonSchema({"type": "string", "enum": list(AuditOutcome)})]
EntryNumber = Annotated[int | None, *_whole_number(LARGEST_OPERATION)]
OperationNumber = Annotated[int, *_whole_number(LARGEST_OPERATION)]
TokenDays = Annotated[int, *_whole_number(LONGEST_TOKEN.days)]
Days = Annotated[int, *_whole_number(MAX_DAYS)]
Word = Annotated[
    str | None, Field(max_length=_LONGEST_WORD), WithJsonSchema({"type": "string", "maxLength": _LONGEST_WORD})
]
Why = Annotated[
    str | None, Field(max_length=LONGEST_REASON), WithJsonSchema({"type": "string", "maxLength": LONGEST_REASON})
]
TrueOrFalse = Annotated[bool, BeforeValidator(_true_or_false)]


class SourceQuery(BaseModel):
    """What every call takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Word = Field(default=None, description="The source's name; left out, `main` or else the first.")


async def no_repeats(request: Request) -> None:
    """Refuse a parameter sent twice, which every reader would understand differently."""
    sent = Counter(key for key, _ in request.query_params.multi_items())
    repeated = [key for key, times in sent.items() if times > 1]
    if repeated:
        raise RequestValidationError([_error(key, "was sent more than once") for key in repeated])


async def no_body(request: Request) -> None:
    """Refuse parameters sent in the body, which would be overlooked: `dry_run` there must not clean."""
    body = b""
    async for chunk in request.stream():
        body = (body + chunk).strip()
        if len(body) > max(map(len, _EMPTY_BODIES)):
            break
    if body not in _EMPTY_BODIES:
        message = "this call takes no body: send its parameters in the query"
        raise RequestValidationError([{"type": "body", "loc": ("body",), "msg": message}])


def _error(name: str, message: str) -> dict[str, object]:
    return {"type": "repeated", "loc": ("query", name), "msg": message}

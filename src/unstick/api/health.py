"""`/health/live`, `/health/ready`, `/health/jobs`: for load balancers and monitors, by the health+json draft.

They need no token and name no job, no address and no secret; asking them is no call of the audit log.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from typing_extensions import TypedDict

from unstick import __version__
from unstick.domain.health import Check, Health, worst
from unstick.domain.schedule import Timetable
from unstick.pipeline.health import SourceHealth, check_jobs, check_ready
from unstick.pipeline.watched import OpenWatched

_MEDIA_TYPE = "application/health+json"
_UNHEALTHY = 503
_YES = ("true", "1", "yes")
_STRICT: dict[str, Any] = {
    "name": "strict",
    "in": "query",
    "description": "With `true`, answer 503 where something failed.",
    "schema": {"type": "string"},
}
"""Read by hand: a monitor that asks strangely is answered all the same."""

Word = Literal["pass", "warn", "fail"]


class CheckShape(TypedDict, total=False):
    """One check, in the draft's words; `output` says what is wrong and what to do."""

    componentId: str
    componentType: str
    status: Word
    observedValue: float
    observedUnit: str
    output: str


class HealthShape(TypedDict, total=False):
    """The answer of a health check; `checks` are by what was measured, a list of one for each source."""

    status: Word
    version: str
    description: str
    checks: dict[str, list[CheckShape]]


_WORDS = {"type": "string", "enum": list(get_args(Word))}
_CHECK = {
    "type": "object",
    "required": ["componentId", "status"],
    "properties": {
        "componentId": {"type": "string"},
        "componentType": {"type": "string"},
        "status": _WORDS,
        "observedValue": {"type": "number"},
        "observedUnit": {"type": "string"},
        "output": {"type": "string"},
    },
}
_CONTENT: dict[str, Any] = {
    _MEDIA_TYPE: {
        "schema": {
            "type": "object",
            "required": ["status", "version"],
            "properties": {
                "status": _WORDS,
                "version": {"type": "string"},
                "description": {"type": "string"},
                "checks": {"type": "object", "additionalProperties": {"type": "array", "items": _CHECK}},
            },
        }
    }
}


def health_router(watched: Mapping[str, OpenWatched], timetable: Timetable) -> APIRouter:
    """Return the three calls, to include where a monitor finds them."""
    router = APIRouter(prefix="/health", tags=["health"])

    async def live() -> JSONResponse:
        """Tell that the process runs; it asks no database."""
        return _answer(HealthShape(status="pass", version=__version__, description="Unstick"))

    async def ready() -> JSONResponse:
        """Tell whether every source and its ledger answer; 503, with reasons, where one doesn't."""
        found = await check_ready(watched)
        return _answer(_shape(found), strict=True)

    async def jobs(request: Request) -> JSONResponse:
        """Tell what is stuck (warn), and whether sources are observed and swept on time (fail where not)."""
        strict = request.query_params.get("strict", "").lower() in _YES
        return _answer(_shape(await check_jobs(watched, timetable)), strict=strict)

    for path, call, parameters in (("/live", live, []), ("/ready", ready, []), ("/jobs", jobs, [_STRICT])):
        router.add_api_route(
            path,
            call,
            operation_id=f"health_{call.__name__}",
            response_model=None,
            response_class=Response,
            openapi_extra={"parameters": parameters} if parameters else None,
            responses={
                200: {"content": _CONTENT, "description": "What was found."},
                _UNHEALTHY: {"content": _CONTENT, "description": "Something failed; `checks` says what."},
            },
        )
    return router


def _answer(shape: HealthShape, *, strict: bool = False) -> JSONResponse:
    failed = strict and shape["status"] == "fail"
    return JSONResponse(
        shape,
        status_code=_UNHEALTHY if failed else 200,
        media_type=_MEDIA_TYPE,
        headers={"Cache-Control": "no-store"},
    )


def _shape(found: Sequence[SourceHealth]) -> HealthShape:
    checks: dict[str, list[CheckShape]] = {}
    for each in found:
        for check in each.checks:
            checks.setdefault(f"source:{check.name}", []).append(_check(each.source, check))
    status = worst([each.health for each in found])
    return HealthShape(status=_word(status), version=__version__, description="Unstick", checks=checks)


def _check(source: str, check: Check) -> CheckShape:
    shape = CheckShape(componentId=source, componentType="datastore", status=_word(check.health))
    if check.value is not None:
        shape["observedValue"] = check.value
    if check.unit is not None:
        shape["observedUnit"] = check.unit
    if check.said is not None:
        shape["output"] = check.said
    return shape


def _word(health: Health) -> Word:
    return "pass" if health is Health.PASS else "warn" if health is Health.WARN else "fail"

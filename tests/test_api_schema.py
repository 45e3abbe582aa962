"""The OpenAPI document says all that can come, and nothing comes that it doesn't say."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.api_support import AUTH, CALLS, PLANS, SECRET, World, host, service
from unstick.api.auth import bearer_principal
from unstick.api.factory import create_app
from unstick.domain.access import Principal, Role

if TYPE_CHECKING:
    from schemathesis.checks import CheckFunction

Case = schemathesis.Case[Any]


async def everybody() -> Principal:
    return Principal(name="ada", role=Role.ADMIN)


# With everybody let in, no call is cut short by a header that was made up.
open_schema = schemathesis.openapi.from_asgi(
    "/openapi.json", create_app(watched={"main": World().open}, principal=everybody)
)
schema = schemathesis.openapi.from_asgi("/openapi.json", service(World())).include(path_regex="^/api/")
"""Health needs no token."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return service(World()).openapi()


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (document["paths"][path][method.lower()] for method, path in CALLS.values())


@open_schema.parametrize()
@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
def test_whatever_is_sent_is_answered_as_documented(case: Case) -> None:
    answer = case.call()
    may_fail = case.path.startswith("/health/")  # which says 503 of what is wrong, where that is asked for
    assert answer.status_code < 500 or (may_fail and answer.status_code == 503)
    # That a cursor is one this service gave out, and a plan only a dry run's, is more than a schema can say.
    # The world here keeps no plan, either.
    unsaid = {"cursor", "plan"} & set(case.query) or case.path == PLANS
    excluded: list[CheckFunction] = [positive_data_acceptance] if unsaid else []
    excluded += [schemathesis.checks.not_a_server_error] if may_fail else []
    case.validate_response(answer, excluded_checks=excluded)


@schema.parametrize()
@settings(max_examples=10, suppress_health_check=list(HealthCheck), deadline=None)
def test_whatever_is_sent_without_a_token_is_401(case: Case) -> None:
    answer = case.call()
    assert answer.status_code == (401 if case.method == case.operation.method.upper() else 405)
    case.validate_response(answer, checks=[schemathesis.checks.response_schema_conformance])


def test_every_call_documents_every_status_that_can_come(document: dict[str, Any]) -> None:
    for operation in operations(document):
        assert set(operation["responses"]) == {"200", "401", "403", "404", "409", "422", "500", "503"}


def test_every_error_is_documented_as_a_problem(document: dict[str, Any]) -> None:
    for operation in operations(document):
        for status, answer in operation["responses"].items():
            if status != "200":
                assert list(answer["content"]) == ["application/problem+json"]
                required = answer["content"]["application/problem+json"]["schema"]["required"]
                assert required == ["type", "title", "status", "detail"]


def test_every_call_wants_a_bearer_token(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert all(operation["security"] == [{"bearer": []}] for operation in operations(document))


def test_parameters_are_documented_with_their_bounds(document: dict[str, Any]) -> None:
    for operation in operations(document):
        known = {parameter["name"]: parameter["schema"] for parameter in operation["parameters"]}
        if "threshold_minutes" in known:
            wanted = {"type": "integer", "minimum": 1, "maximum": 525_600}
            assert wanted.items() <= known["threshold_minutes"].items()
        assert not any("null" in str(said) for said in known.values())


@pytest.mark.parametrize(
    "app", [service(World()), host(World(), bearer_principal(SECRET, AUTH))], ids=["service", "host"]
)
def test_the_frameworks_own_error_shape_doesnt_appear(app: Any) -> None:  # noqa: ANN401
    assert "ValidationError" not in str(app.openapi())


def test_nothing_is_served_that_loads_from_elsewhere(document: dict[str, Any]) -> None:
    app = service(World())
    assert (app.docs_url, app.redoc_url) == (None, None)

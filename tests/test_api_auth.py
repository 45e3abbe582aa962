"""Who gets in: bearer tokens, and which role opens which call."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

from tests.api_support import (
    AUTH,
    CALLS,
    CLEANUP,
    SECRET,
    STATS,
    STUCK,
    World,
    assert_problem,
    bearer,
    client,
    service,
    token,
)
from unstick.api.auth import bearer_principal, mint_token
from unstick.domain.access import Role
from unstick.domain.errors import ConfigurationError

KEY = SECRET.get_secret_value()
ALLOWED = {
    ("jobs.stuck", Role.VIEWER): True,
    ("jobs.stuck", Role.OPERATOR): True,
    ("jobs.stuck", Role.ADMIN): True,
    ("jobs.cleanup", Role.VIEWER): False,
    ("jobs.cleanup", Role.OPERATOR): True,
    ("jobs.cleanup", Role.ADMIN): True,
    ("stats", Role.VIEWER): True,
    ("stats", Role.OPERATOR): True,
    ("stats", Role.ADMIN): True,
}


def claims(**changed: object) -> dict[str, object]:
    """Return a first user's own admin claims, which say neither who made them nor for whom."""
    made: dict[str, object] = {"sub": "ada", "role": "admin", "exp": datetime.now(UTC) + timedelta(minutes=5)}
    return {name: value for name, value in {**made, **changed}.items() if value is not ...}


def signed(**changed: object) -> str:
    return jwt.encode(claims(**changed), KEY, "HS256")


def handmade(header: dict[str, Any], payload: bytes, key: bytes = KEY.encode()) -> str:
    """Sign by HMAC whatever the header says."""
    parts = (base64.urlsafe_b64encode(part).rstrip(b"=") for part in (json.dumps(header).encode(), payload))
    body = b".".join(parts)
    signature = hmac.new(key, body, hashlib.sha256).digest()
    return (body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def plain_payload() -> bytes:
    return json.dumps(claims(exp=int(datetime.now(UTC).timestamp()) + 300)).encode()


BAD: dict[str, Callable[[], str]] = {
    "of alg none": lambda: jwt.encode(claims(), None, "none"),
    "of alg none with a signature": lambda: handmade({"alg": "none", "typ": "JWT"}, plain_payload()),
    "of RS256 signed by HMAC": lambda: handmade({"alg": "RS256", "typ": "JWT"}, plain_payload()),
    "of HS512": lambda: jwt.encode(claims(), KEY, "HS512"),
    "signed with another key": lambda: jwt.encode(claims(), "another secret of thirty-two bytes", "HS256"),
    "signed with an empty key": lambda: handmade({"alg": "HS256"}, plain_payload(), b""),
    "expired": lambda: signed(exp=datetime.now(UTC) - timedelta(seconds=1)),
    "not valid yet": lambda: signed(nbf=datetime.now(UTC) + timedelta(minutes=1)),
    "without exp": lambda: signed(exp=...),
    "with a null exp": lambda: signed(exp=None),
    "with an endless exp": lambda: handmade({"alg": "HS256"}, b'{"sub": "ada", "role": "admin", "exp": Infinity}'),
    "with a list for exp": lambda: signed(exp=[1]),
    "without sub": lambda: signed(sub=...),
    "with an empty sub": lambda: signed(sub=""),
    "with a number for sub": lambda: handmade({"alg": "HS256"}, b'{"sub": 7, "role": "admin", "exp": 9999999999}'),
    "of another audience": lambda: signed(aud="somebody else"),
    "of other audiences": lambda: signed(aud=["somebody", "else"]),
    "of a null audience": lambda: signed(aud=None),
    "of another issuer": lambda: signed(iss="somebody else"),
    "that is no object": lambda: handmade({"alg": "HS256"}, b"[]"),
    "nested without end": lambda: handmade({"alg": "HS256"}, b"[" * 40_000),
    "with a header nested without end": lambda: base64.urlsafe_b64encode(b"[" * 30_000).decode() + ".e30.e30",
    "that is no token": lambda: "not-a-token",
    "cut short": lambda: signed()[:-4],
    "in two parts": lambda: "e30.e30",
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_token_is_refused(kind: str) -> None:
    world = World()
    before = world.states()
    async with client(service(world)) as caller:
        for method, path in CALLS.values():
            answer = await caller.request(method, path, headers=bearer(BAD[kind]()))
            assert_problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
    assert world.states() == before


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YWRhOnB3", "admin", "Bearer null"], ids=repr)
async def test_a_call_without_a_token_is_401(header: str | None) -> None:
    async with client(service(World())) as caller:
        for method, path in CALLS.values():
            headers = {} if header is None else {"Authorization": header}
            answer = await caller.request(method, path, headers=headers)
            assert_problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("call", "role"), ALLOWED, ids=str)
async def test_each_role_opens_its_calls_and_no_more(call: str, role: Role) -> None:
    world = World()
    before = world.states()
    async with client(service(world), role) as caller:
        answer = await caller.request(*CALLS[call])
    if ALLOWED[call, role]:
        assert answer.status_code == 200
    else:
        assert_problem(answer, 403)
        assert world.states() == before


@pytest.mark.parametrize("role", ["user", "Admin", "admin ", "", None, ..., 1, True, ["admin"], {"admin": 1}], ids=repr)
async def test_any_other_role_is_a_valid_token_that_opens_nothing(role: object) -> None:
    world = World()
    before = world.states()
    async with client(service(world)) as caller:
        for method, path in CALLS.values():
            assert_problem(await caller.request(method, path, headers=bearer(signed(role=role))), 403)
    assert world.states() == before
    assert {row.actor for row in world.ledger.rows} == {"ada"}


async def test_a_foreign_role_is_recorded_no_longer_than_the_ledger_keeps_it() -> None:
    world = World()
    async with client(service(world)) as caller:
        await caller.get(STATS, headers=bearer(signed(role="r" * 500)))
    assert world.ledger.rows[0].role == "r" * 32


@pytest.mark.parametrize(
    "changed",
    [{}, {"aud": "unstick"}, {"aud": ["x", "unstick"]}, {"iss": "unstick"}, {"iat": datetime(2999, 1, 1, tzinfo=UTC)}],
    ids=str,
)
async def test_a_first_users_own_admin_token_opens_everything(changed: dict[str, object]) -> None:
    async with client(service(World())) as caller:
        for method, path in CALLS.values():
            answer = await caller.request(method, path, headers=bearer(signed(**changed)))
            assert answer.status_code == 200


@pytest.mark.parametrize("query", ["threshold_minutes=0", "nonsense=1", "source=nowhere", "threshold_minutes=1&" * 3])
async def test_whoever_may_not_call_learns_nothing_of_their_parameters(query: str) -> None:
    """Authentication comes before authorization, and both before validation."""
    world = World()
    async with client(service(world)) as caller:
        for method, path in CALLS.values():
            assert_problem(await caller.request(method, f"{path}?{query}"), 401)
            answer = await caller.request(method, f"{path}?{query}", headers=bearer(signed(role="user")))
            assert_problem(answer, 403)
        viewer = bearer(token(Role.VIEWER))
        assert_problem(await caller.post(f"{CLEANUP}?{query}", headers=viewer, json={"dry_run": True}), 403)


async def test_a_minted_token_says_who_for_whom_and_until_when() -> None:
    said = jwt.decode(token(Role.OPERATOR, "grace"), KEY, ["HS256"], audience=AUTH.audience, issuer=AUTH.issuer)
    assert (said["sub"], said["role"]) == ("grace", "operator")
    assert said["exp"] - said["iat"] == 300


async def test_a_minted_token_gets_in() -> None:
    async with client(service(World()), Role.VIEWER) as caller:
        assert (await caller.get(STATS)).status_code == 200
        assert (await caller.get(STUCK)).status_code == 200


def test_a_short_secret_is_told_before_anything_starts() -> None:
    short = SecretStr("too short")
    with pytest.raises(ConfigurationError, match="9 bytes and needs at least 32"):
        bearer_principal(short, AUTH)
    with pytest.raises(ConfigurationError, match="UNSTICK_SECRET_KEY"):
        mint_token(short, role=Role.ADMIN, subject="ada", lifetime=timedelta(minutes=1), auth=AUTH)

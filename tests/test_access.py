"""Who gets in: passwords, tokens, one-time links and the sessions they open, as every database keeps them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
import time_machine
from pwdlib import PasswordHash

from tests.servers import EACH_KIND
from unstick.config import Settings, SourceSettings
from unstick.domain.access import (
    LINK_LASTS,
    LONGEST_TOKEN,
    SESSION_LASTS,
    TOKEN_PREFIX,
    Bearer,
    Credential,
    CredentialKind,
    Principal,
    Role,
    Secret,
    Visit,
    read_secret,
    read_token,
    requested_lifetime,
    requested_name,
    requested_password,
    token_text,
)
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import (
    InvalidRequestError,
    SignInRefusedError,
    TooManyFailuresError,
    UnknownCredentialError,
    UserExistsError,
)
from unstick.domain.retention import Retention
from unstick.domain.sign_in_failures import (
    FORGOTTEN_AFTER,
    FREE,
    KNOWN_FOR,
    LONGEST_WAIT,
    Failures,
    SignInTry,
    time_to_wait,
)
from unstick.passwords import Argon2Passwords
from unstick.pipeline.credentials import (
    TokenOrder,
    living_sessions,
    living_tokens,
    make_token,
    revoke_session,
    revoke_sessions,
    revoke_token,
)
from unstick.pipeline.signing_in import (
    SignedIn,
    access_of,
    make_sign_in_link,
    session_principal,
    sign_in_by_bearer,
    sign_in_by_link,
    sign_in_by_password,
    sign_out,
    token_bearer,
)
from unstick.pipeline.users import add_user, list_users, remove_user
from unstick.sql import tables
from unstick.sql.engine import open_engine
from unstick.wiring import open_watched, upgrade_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.pipeline.watched import Watched

DATABASES = EACH_KIND
PASSWORD = "correct horse battery"
HASH = PasswordHash.recommended().hash(PASSWORD)
ADDED = AuditEntry(actor="cli:root", call="users.add", outcome=AuditOutcome.DONE)
GRACE = Principal(name="grace", role=Role.ADMIN)
VERA = Principal(name="vera", role=Role.VIEWER)
HOME, AWAY = Visit(address="192.0.2.7", browser="Lynx"), Visit(address="198.51.100.9")
LEDGER = (tables.audit, tables.credentials, tables.users, tables.sign_in_failures)


@dataclass(frozen=True)
class House:
    """A ledger with one user, and what the tests see of its tables."""

    watched: Watched
    engine: AsyncEngine

    async def execute(self, statement: sa.Executable) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(statement)

    async def rows(self, table: sa.Table) -> list[dict[str, Any]]:
        async with self.engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(sa.select(table))).mappings()]

    async def entries(self, call: str) -> list[tuple[str, str, dict[str, Any]]]:
        found = [row for row in await self.rows(tables.audit) if row["call"] == call]
        return [(row["actor"], row["outcome"], row["parameters"]) for row in found]

    async def wait(self, duration: timedelta) -> None:
        """Have everything that failed be so much older, by the database's clock."""
        for row in await self.rows(tables.sign_in_failures):
            older = {name: row[name] and row[name] - duration for name in ("failed_at", "succeeded_at", "at")}
            this = tables.sign_in_failures.c.subject == row["subject"]
            await self.execute(sa.update(tables.sign_in_failures).where(this).values(older))

    async def age(self, kind: CredentialKind, duration: timedelta) -> None:
        """Have all credentials of a kind be so much older, by the database's clock."""
        for row in await self.rows(tables.credentials):
            older = {name: row[name] and row[name] - duration for name in ("made_at", "expires_at", "used_at")}
            this = sa.and_(tables.credentials.c.id == row["id"], tables.credentials.c.kind == kind.value)
            await self.execute(sa.update(tables.credentials).where(this).values(older))


@pytest.fixture
async def house(database: Database) -> AsyncIterator[House]:
    settings = Settings(sources={"main": SourceSettings.model_validate({"url": database.url})})
    await upgrade_database(settings)
    engine = open_engine(database.url)
    async with open_watched(settings) as watched:
        await access_of(watched).users.add("grace", Role.ADMIN, HASH, ADDED)
        yield House(watched, engine)
    await engine.dispose()


async def grace_signs_in(house: House, visit: Visit = HOME) -> SignedIn:
    return await sign_in_by_password(house.watched, "grace", PASSWORD, visit)


async def session_of_grace(house: House, visit: Visit = HOME) -> SignedIn:
    """Begin a session without a password, which takes its time."""
    bearer = Bearer(principal=GRACE, until=datetime(2999, 1, 1, tzinfo=UTC))
    return await sign_in_by_bearer(house.watched, bearer, visit)


async def fail(house: House, name: str = "grace", times: int = FREE + 6) -> None:
    """Have so many tries fail that the next one has to wait for a minute."""
    for _ in range(times):
        await house.wait(LONGEST_WAIT)
        tried = SignInTry(address=AWAY.address, name=name)
        assert await access_of(house.watched).failures.begin(tried) == timedelta(0)


async def guess(house: House, visit: Visit = AWAY, name: str = "grace") -> type[Exception] | None:
    """Sign in by a wrong password, and return how that ended."""
    try:
        await sign_in_by_password(house.watched, name, "not it, surely", visit)
    except (SignInRefusedError, TooManyFailuresError) as error:
        return type(error)
    return None


def token_order(name: str = "ci", scope: Role = Role.OPERATOR, days: int = 30) -> TokenOrder:
    return TokenOrder(actor="grace", role="admin", name=name, scope=scope, lasting=timedelta(days=days))


async def test_a_password_opens_a_session_and_neither_another_nor_another_name_does(house: House) -> None:
    signed_in = await grace_signs_in(house)
    assert await session_principal(house.watched, signed_in.secret.text) == GRACE

    said = set()
    for name, password in (("grace", PASSWORD + "!"), ("grace", ""), ("Grace", PASSWORD), ("nobody", PASSWORD)):
        with pytest.raises(SignInRefusedError) as refused:
            await sign_in_by_password(house.watched, name, password, AWAY)
        said.add(str(refused.value))
    assert len(said) == 1

    assert (await house.entries("access.sign_in")).count(
        ("grace", "done", {"by": "password", "client_address": HOME.address})
    ) == 1
    refusals = [said for _, outcome, said in await house.entries("access.sign_in") if outcome == "refused"]
    assert {each.get("user") for each in refusals} == {"grace", None}


async def test_nothing_that_is_shown_is_kept_or_recorded(house: House) -> None:
    session = (await grace_signs_in(house)).secret
    link = await make_sign_in_link(house.watched, GRACE)
    _, token = await make_token(house.watched, token_order())
    typed_as_name = "my-own-passw0rd"
    await guess(house, name=typed_as_name)

    kept = [str(value) for table in LEDGER for row in await house.rows(table) for value in row.values()]
    assert any(GRACE.name in value for value in kept)
    for shown in (PASSWORD, "not it, surely", typed_as_name, session.key, link.key, token[-43:]):
        assert [value for value in kept if shown in value] == []
    assert token.startswith(TOKEN_PREFIX)
    assert session.key not in repr(session)


async def test_whoever_fails_too_often_waits_whatever_they_show(house: House) -> None:
    assert [await guess(house) for _ in range(2)] == [SignInRefusedError] * 2
    await fail(house)
    for _ in range(2):
        with pytest.raises(TooManyFailuresError) as slowed:
            await grace_signs_in(house, AWAY)
    assert 30 < slowed.value.seconds <= 60
    assert await guess(house) is TooManyFailuresError

    await house.wait(LONGEST_WAIT)
    await grace_signs_in(house, AWAY)
    assert await guess(house) is TooManyFailuresError


async def test_of_many_who_guess_at_once_one_is_heard_where_one_may(house: House) -> None:
    await fail(house)
    await house.wait(LONGEST_WAIT)
    ends = await asyncio.gather(*(guess(house) for _ in range(8)))
    assert (ends.count(SignInRefusedError), ends.count(TooManyFailuresError)) == (1, 7)


async def test_guessing_from_everywhere_slows_a_name_but_not_where_it_is_at_home(house: House) -> None:
    await grace_signs_in(house)
    await fail(house)
    with pytest.raises(TooManyFailuresError):
        await grace_signs_in(house, Visit(address="203.0.113.9"))
    await grace_signs_in(house)


async def test_an_account_of_ones_own_doesnt_help_to_guess_at_others(house: House) -> None:
    await access_of(house.watched).users.add("vera", Role.VIEWER, HASH, ADDED)
    await fail(house)
    await house.wait(LONGEST_WAIT)
    await sign_in_by_password(house.watched, "vera", PASSWORD, AWAY)
    assert await guess(house) is TooManyFailuresError


async def test_a_token_or_a_link_is_never_kept_waiting(house: House) -> None:
    _, token = await make_token(house.watched, token_order())
    link = await make_sign_in_link(house.watched, GRACE)
    await fail(house)
    with pytest.raises(TooManyFailuresError):
        await sign_in_by_link(house.watched, "0" * 16 + "x" * 43, AWAY)
    with pytest.raises(TooManyFailuresError):
        await sign_in_by_bearer(house.watched, None, AWAY)

    await sign_in_by_bearer(house.watched, await token_bearer(house.watched, token), AWAY)
    await sign_in_by_link(house.watched, link.text, AWAY)


async def test_a_link_signs_in_once_however_many_use_it_at_once(house: House) -> None:
    link = await make_sign_in_link(house.watched, GRACE)
    ends = await asyncio.gather(
        *(sign_in_by_link(house.watched, link.text, HOME) for _ in range(4)), return_exceptions=True
    )
    [signed_in] = [end for end in ends if isinstance(end, SignedIn)]
    assert [type(end) for end in ends].count(SignInRefusedError) == 3
    assert await session_principal(house.watched, signed_in.secret.text) == GRACE
    assert [row["kind"] for row in await house.rows(tables.credentials)] == ["session"]


async def test_credentials_expire_by_the_database_and_not_by_our_clock(house: House) -> None:
    session, link = await session_of_grace(house), await make_sign_in_link(house.watched, GRACE)
    _, token = await make_token(house.watched, token_order())
    with time_machine.travel(datetime.now(UTC) + timedelta(days=1000), tick=True):
        assert await session_principal(house.watched, session.secret.text) == GRACE
        assert await token_bearer(house.watched, token) is not None

    for kind, lasting in zip(CredentialKind, (SESSION_LASTS, timedelta(days=30), LINK_LASTS), strict=True):
        await house.age(kind, lasting)
    assert await session_principal(house.watched, session.secret.text) is None
    assert await token_bearer(house.watched, token) is None
    with pytest.raises(SignInRefusedError):
        await sign_in_by_link(house.watched, link.text, HOME)
    assert await living_tokens(house.watched) == []


async def test_one_kind_of_credential_opens_nothing_of_another(house: House) -> None:
    session, link = await session_of_grace(house), await make_sign_in_link(house.watched, GRACE)
    _, token = await make_token(house.watched, token_order())
    assert await session_principal(house.watched, link.text) is None
    assert await session_principal(house.watched, token.removeprefix(TOKEN_PREFIX)) is None
    assert await token_bearer(house.watched, TOKEN_PREFIX + session.secret.text) is None
    with pytest.raises(SignInRefusedError):
        await sign_in_by_link(house.watched, session.secret.text, HOME)


async def test_the_right_id_with_another_secret_opens_nothing(house: House) -> None:
    secret = (await session_of_grace(house)).secret
    assert await session_principal(house.watched, replace(secret, key="x" * 43).text) is None
    assert await session_principal(house.watched, secret.text + "x") is None


async def test_a_session_that_is_ended_opens_nothing_and_the_others_stay(house: House) -> None:
    here, there, third = (
        await session_of_grace(house),
        await session_of_grace(house, AWAY),
        await session_of_grace(house),
    )
    await sign_out(house.watched, here.secret.text, HOME)
    await revoke_session(house.watched, GRACE, third.secret.id)
    opened = [await session_principal(house.watched, each.secret.text) for each in (here, there, third)]
    assert opened == [None, GRACE, None]
    [left] = await living_sessions(house.watched, GRACE)
    assert (left.id, left.visit) == (there.secret.id, Visit(address=AWAY.address))

    assert await revoke_sessions(house.watched, GRACE, "grace") == 1
    assert await session_principal(house.watched, there.secret.text) is None
    assert ("grace", "done", {"name": "grace"}) in await house.entries("sessions.revoke")


async def test_a_viewer_sees_and_ends_their_own_sessions_alone(house: House) -> None:
    theirs = await session_of_grace(house)
    assert await living_sessions(house.watched, VERA) == []
    with pytest.raises(UnknownCredentialError):
        await revoke_session(house.watched, VERA, theirs.secret.id)
    with pytest.raises(UnknownCredentialError):
        await revoke_sessions(house.watched, VERA, "grace")
    assert await session_principal(house.watched, theirs.secret.text) == GRACE


async def test_whoever_is_removed_is_out_at_once(house: House) -> None:
    signed_in = await session_of_grace(house)
    with pytest.raises(UserExistsError):
        await add_user(house.watched, "grace", Role.VIEWER, PASSWORD, by="cli:root")
    await remove_user(house.watched, "grace", by="cli:root")
    assert await session_principal(house.watched, signed_in.secret.text) is None
    assert await guess(house) is SignInRefusedError
    assert await list_users(house.watched) == []


class RemovedMeanwhile(Argon2Passwords):
    """A user who is removed while the password is being compared."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def matches(self, password: str, kept: str | None) -> bool:
        matched = await super().matches(password, kept)
        await remove_user(self._house.watched, "grace", by="cli:root")
        return matched


async def test_whoever_is_removed_while_they_sign_in_gets_no_session(house: House) -> None:
    access = replace(access_of(house.watched), passwords=RemovedMeanwhile(house))
    with pytest.raises(SignInRefusedError):
        await sign_in_by_password(replace(house.watched, access=access), "grace", PASSWORD, HOME)
    assert await house.rows(tables.credentials) == []


async def test_a_token_is_good_for_its_role_and_time_and_its_use_is_noted(house: House) -> None:
    made, token = await make_token(house.watched, token_order(scope=Role.VIEWER, days=1))
    bearer = await token_bearer(house.watched, token)
    assert bearer is not None
    assert bearer.principal == Principal(name="token:ci", role=Role.VIEWER)
    assert bearer.until - made.made_at == timedelta(days=1)
    [listed] = await living_tokens(house.watched)
    assert isinstance(listed, Credential)
    assert listed.used_at is not None
    assert listed.used_at - made.made_at < timedelta(minutes=1)

    await revoke_token(house.watched, GRACE, made.id)
    assert await token_bearer(house.watched, token) is None
    with pytest.raises(UnknownCredentialError):
        await revoke_token(house.watched, GRACE, made.id)
    made_as = {"name": "ci", "role": "viewer", "seconds": 86_400.0}
    assert await house.entries("tokens.make") == [("grace", "done", made_as)]
    assert await house.entries("tokens.revoke") == [("grace", "done", {"id": made.id})]


async def test_a_session_ends_with_the_token_that_opened_it(house: House) -> None:
    made, token = await make_token(house.watched, token_order())
    bearer = await token_bearer(house.watched, token)
    signed_in = await sign_in_by_bearer(house.watched, bearer, HOME)
    await revoke_token(house.watched, GRACE, made.id)
    assert await session_principal(house.watched, signed_in.secret.text) is None
    with pytest.raises(SignInRefusedError):
        await sign_in_by_bearer(house.watched, bearer, HOME)

    soon = made.made_at + timedelta(minutes=5)
    signed = await sign_in_by_bearer(house.watched, Bearer(principal=VERA, until=soon), HOME)
    assert signed.expires_at == soon


async def test_what_is_over_is_struck_when_it_is_old(house: House) -> None:
    await session_of_grace(house)
    await fail(house, times=1)
    await house.age(CredentialKind.SESSION, SESSION_LASTS + Retention().events)
    await house.wait(KNOWN_FOR + timedelta(minutes=1))
    assert house.watched.pruner is not None
    struck = [table async for table, _ in house.watched.pruner.prune(Retention())]
    assert struck == ["unstick_credentials", "unstick_sign_in_failures"]


@pytest.mark.parametrize("password", ["", "elevenchars", "x" * 1_025])
def test_a_password_that_is_soon_guessed_is_refused(password: str) -> None:
    with pytest.raises(InvalidRequestError, match="12 to 1024 characters"):
        requested_password(password)


@pytest.mark.parametrize("lasting", [timedelta(0), LONGEST_TOKEN + timedelta(microseconds=1)])
def test_a_token_is_never_good_for_ever_or_for_no_time(lasting: timedelta) -> None:
    with pytest.raises(InvalidRequestError, match="at most 365 days"):
        requested_lifetime(lasting)


def test_what_is_as_long_as_it_may_be_is_taken() -> None:
    for password in ("x" * 12, "x" * 1_024):
        assert requested_password(password) == password
    assert requested_name("x" * 64) == "x" * 64
    assert requested_lifetime(LONGEST_TOKEN) == LONGEST_TOKEN


def test_a_token_is_read_as_it_is_sent_and_nothing_like_it_is() -> None:
    secret = Secret(id="0123456789abcdef", key="k" * 43)
    sent = token_text(secret)

    assert read_token(sent) == read_secret(secret.text) == secret
    for other in (secret.text, sent + "k", sent[:-1], sent.upper(), "x" + sent):
        assert read_token(other) is None


@pytest.mark.parametrize("name", ["", "token:ci", "cli:root", "a b", "-x", "x" * 65, "a\nb", "a/b"], ids=repr)
def test_no_name_looks_like_anything_else(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        requested_name(name)


def test_each_failure_more_costs_twice_the_wait_up_to_a_minute() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    waits = [Failures(number=number, failed_at=now).wait(now).total_seconds() for number in range(FREE - 1, FREE + 9)]
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    many = Failures(number=10**9, failed_at=now)
    assert many.wait(now) == LONGEST_WAIT
    assert many.wait(now + FORGOTTEN_AFTER) == timedelta(0)
    assert many.again(now + FORGOTTEN_AFTER) == Failures(number=1, failed_at=now + FORGOTTEN_AFTER)
    again = now + FORGOTTEN_AFTER - timedelta(microseconds=1)
    assert Failures(number=3, failed_at=now).again(again) == Failures(number=4, failed_at=again)


def test_whoever_is_known_here_waits_for_their_own_failures_alone() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    many, none = Failures(number=99, failed_at=now), Failures()
    known, stranger = Failures(succeeded_at=now - KNOWN_FOR / 2), Failures(succeeded_at=now - KNOWN_FOR)
    assert time_to_wait([none, many, known], now) == timedelta(0)
    assert time_to_wait([none, many, stranger], now) == LONGEST_WAIT
    assert time_to_wait([many, none, known], now) == LONGEST_WAIT
    assert time_to_wait([many], now) == LONGEST_WAIT


def test_a_try_is_counted_for_the_network_that_one_customer_has() -> None:
    def counted(address: str) -> str:
        return SignInTry(address=address).subjects[0]

    assert counted("2001:db8:1:2::7") == counted("2001:db8:1:2:ffff::9")
    assert counted("2001:db8:1:2::7") != counted("2001:db8:1:3::7")
    assert counted("::ffff:192.0.2.7") == counted("192.0.2.7") != counted("192.0.2.8")
    assert counted("unknown") != counted("192.0.2.7")
    assert len(set(SignInTry(address="192.0.2.7", name="grace").subjects)) == 3
    assert len(SignInTry(address="192.0.2.7").subjects) == 1

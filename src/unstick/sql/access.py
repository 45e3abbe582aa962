"""Who gets in, in tables of Unstick's own; each change and its audit entry are one transaction.

Guarantee: of a secret only its SHA-256 is kept, a sign-in link is spent once, and what has expired by the database's
clock opens nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.domain.access import Credential, CredentialKind, NewCredential, Principal, Role, Secret, User, Visit
from unstick.domain.audit import AuditEntry
from unstick.domain.sign_in_failures import Failures, SignInTry, time_to_wait
from unstick.sql.connections import Connections
from unstick.sql.ledger import audit_row
from unstick.sql.tables import audit, credentials, sign_in_failures, users
from unstick.sql.upserting import upsert

_USED_WITHIN = timedelta(minutes=1)
"""How exactly it is kept when something was last used: not every call is to be a write."""
_LONGEST_NAME = 255
_LONGEST_ADDRESS = 64


class SqlCredentials:
    """Sessions, tokens and sign-in links in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def keep(self, new: NewCredential, entry: AuditEntry) -> Credential | None:
        """Keep a credential, and write the entry with it; None where what opened it was struck meanwhile."""
        async with self._connections.writing() as (connection, now):
            return await _keep(connection, new, entry, now)

    async def present(self, kind: CredentialKind, secret: Secret) -> Credential | None:
        """Return the credential that a secret opens, and note that it was used."""
        async with self._connections.reading() as (connection, now):
            row = await _opened(connection, kind, secret, now)
        if row is None:
            return None
        if row.used_at is None or now - row.used_at >= _USED_WITHIN:
            await self._note_used(row.id)
        return _credential(row)

    async def _note_used(self, credential_id: str) -> None:
        async with self._connections.writing() as (connection, now):
            await connection.execute(
                sa.update(credentials).where(credentials.c.id == credential_id).values(used_at=now)
            )

    async def spend(self, secret: Secret, session: NewCredential, entry: AuditEntry) -> Credential | None:
        """Strike a sign-in link, and keep a session of its principal in its stead."""
        async with self._connections.writing() as (connection, now):
            row = await _opened(connection, CredentialKind.LINK, secret, now)
            if row is None:
                return None
            struck = await connection.execute(sa.delete(credentials).where(credentials.c.id == row.id))
            if not struck.rowcount:
                return None
            principal = _credential(row).principal
            entry = replace(entry, actor=principal.name, role=principal.role.value)
            return await _keep(connection, replace(session, principal=principal), entry, now)

    async def strike(
        self, kind: CredentialKind, credential_id: str, entry: AuditEntry, *, of: str | None = None
    ) -> bool:
        """Strike a credential and the sessions it opened."""
        this = sa.and_(credentials.c.kind == kind.value, credentials.c.id == credential_id, _of(of))
        async with self._connections.writing() as (connection, now):
            struck = await connection.execute(sa.delete(credentials).where(this))
            if struck.rowcount:
                await connection.execute(sa.delete(credentials).where(credentials.c.opened_by == credential_id))
                await connection.execute(sa.insert(audit).values(audit_row(entry, now)))
        return bool(struck.rowcount)

    async def strike_all(self, kind: CredentialKind, name: str, entry: AuditEntry) -> int:
        """Strike all of a kind that stand for a name."""
        theirs = sa.and_(credentials.c.kind == kind.value, credentials.c.name == name)
        async with self._connections.writing() as (connection, now):
            struck = await connection.execute(sa.delete(credentials).where(theirs))
            told = replace(entry, result={**entry.result, "struck": struck.rowcount})
            await connection.execute(sa.insert(audit).values(audit_row(told, now)))
        return struck.rowcount

    async def living(self, kind: CredentialKind, limit: int, *, of: str | None = None) -> Sequence[Credential]:
        """Return the credentials of a kind, or of a name, that haven't expired, the newest first."""
        async with self._connections.reading() as (connection, now):
            living = sa.select(credentials).where(credentials.c.kind == kind.value, credentials.c.expires_at > now)
            newest = living.where(_of(of)).order_by(credentials.c.made_at.desc(), credentials.c.id).limit(limit)
            return [_credential(row) for row in await connection.execute(newest)]


class SqlUsers:
    """Those who sign in by a password, in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def add(self, name: str, role: Role, password_hash: str, entry: AuditEntry) -> bool:
        """Keep a user; False where the name is taken."""
        row = {"name": name, "role": role.value, "password_hash": password_hash, "made_by": entry.actor[:_LONGEST_NAME]}
        try:
            async with self._connections.writing() as (connection, now):
                await connection.execute(sa.insert(users).values({**row, "made_at": now}))
                await connection.execute(sa.insert(audit).values(audit_row(entry, now)))
        except IntegrityError:
            return False
        return True

    async def find(self, name: str) -> tuple[User, str] | None:
        """Return a user and the hash of the password."""
        async with self._connections.reading() as (connection, _):
            row = (await connection.execute(sa.select(users).where(users.c.name == name))).one_or_none()
        return None if row is None else (_user(row), row.password_hash)

    async def remove(self, name: str, entry: AuditEntry) -> bool:
        """Strike a user and all that opens for that name."""
        async with self._connections.writing() as (connection, now):
            struck = await connection.execute(sa.delete(users).where(users.c.name == name))
            if struck.rowcount:
                await connection.execute(sa.delete(credentials).where(credentials.c.name == name))
                await connection.execute(sa.insert(audit).values(audit_row(entry, now)))
        return bool(struck.rowcount)

    async def all(self) -> Sequence[User]:
        """Return the users by name."""
        async with self._connections.reading() as (connection, _):
            return [_user(row) for row in await connection.execute(sa.select(users).order_by(users.c.name))]


class SqlSignInFailures:
    """Failures to sign in, in a SQL database: a row an address, a name, and a name from an address."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def begin(self, tried: SignInTry) -> timedelta:
        """Count an tried as failed, or return how long it has to wait; of several at once each counts."""
        async with self._connections.writing() as (connection, now):
            failures = await self._lock(connection, tried, now)
            wait = time_to_wait(failures.values(), now)
            if not wait:
                for subject, each in failures.items():
                    await connection.execute(_changed(subject, each.again(now), now))
        return wait

    async def succeed(self, tried: SignInTry) -> None:
        """Take one failure of the address back, and forget those of the name and of the name from there.

        The address keeps what failed before: else whoever has an account there could guess at others without end.
        """
        async with self._connections.writing() as (connection, now):
            failures = await self._lock(connection, tried, now)
            for place, (subject, each) in enumerate(failures.items()):
                number = max(0, each.number - 1) if place == 0 else 0
                succeeded = replace(each, number=number, succeeded_at=now)
                await connection.execute(_changed(subject, succeeded, now))

    async def _lock(self, connection: AsyncConnection, tried: SignInTry, now: datetime) -> Mapping[str, Failures]:
        """Return what is known of each subject, and keep others from changing it; always in the same order."""
        found: dict[str, Failures] = {}
        for subject in tried.subjects:
            none_yet = {"subject": subject, "number": 0, "at": now}
            stays = {"subject": subject}
            await connection.execute(
                upsert(self._connections.dialect.name, sign_in_failures, "subject", none_yet, stays)
            )
            known = sa.select(sign_in_failures).where(sign_in_failures.c.subject == subject).with_for_update()
            row = (await connection.execute(known)).one()
            found[subject] = Failures(number=row.number, failed_at=row.failed_at, succeeded_at=row.succeeded_at)
        return found


def _of(name: str | None) -> sa.ColumnElement[bool]:
    return sa.true() if name is None else credentials.c.name == name


def _changed(subject: str, failures: Failures, now: datetime) -> sa.Update:
    return (
        sa.update(sign_in_failures)
        .where(sign_in_failures.c.subject == subject)
        .values(number=failures.number, failed_at=failures.failed_at, succeeded_at=failures.succeeded_at, at=now)
    )


async def _keep(connection: AsyncConnection, new: NewCredential, entry: AuditEntry, now: datetime) -> Credential | None:
    if not await _is_still_open(connection, new):
        return None
    row = _credential_row(new, now)
    await connection.execute(sa.insert(credentials).values(row))
    await connection.execute(sa.insert(audit).values(audit_row(entry, now)))
    return _credential((await connection.execute(_by_id(new.kind, new.secret.id))).one())


async def _is_still_open(connection: AsyncConnection, new: NewCredential) -> bool:
    """Tell whether what opened a session is there, and keep it there: whoever strikes it then strikes the session."""
    if new.opened_by is not None:
        opener = sa.select(credentials.c.id).where(credentials.c.id == new.opened_by)
    elif new.password_hash is not None:
        theirs = sa.and_(users.c.name == new.principal.name, users.c.password_hash == new.password_hash)
        opener = sa.select(users.c.name).where(theirs)
    else:
        return True
    return (await connection.execute(opener.with_for_update())).first() is not None


async def _opened(
    connection: AsyncConnection, kind: CredentialKind, secret: Secret, now: datetime
) -> sa.Row[Any] | None:
    """Find by the id, which is no secret, and compare the secret's digest in constant time."""
    row = (await connection.execute(_by_id(kind, secret.id))).one_or_none()
    return row if row is not None and secret.opens(row.digest) and row.expires_at > now else None


def _by_id(kind: CredentialKind, credential_id: str) -> sa.Select[Any]:
    return sa.select(credentials).where(credentials.c.id == credential_id, credentials.c.kind == kind.value)


def _credential_row(new: NewCredential, now: datetime) -> dict[str, Any]:
    ends = now + new.lasting
    return {
        "id": new.secret.id,
        "kind": new.kind.value,
        "digest": new.secret.digest,
        "name": new.principal.name[:_LONGEST_NAME],
        "role": new.principal.role.value,
        "made_by": new.made_by[:_LONGEST_NAME],
        "made_at": now,
        "expires_at": ends if new.until is None else min(ends, new.until),
        "opened_by": new.opened_by,
        "address": None if new.visit is None else new.visit.address[:_LONGEST_ADDRESS],
        "browser": None if new.visit is None else new.visit.browser[:_LONGEST_NAME],
    }


def _credential(row: sa.Row[Any]) -> Credential:
    return Credential(
        id=row.id,
        kind=CredentialKind(row.kind),
        principal=Principal(name=row.name, role=Role(row.role)),
        made_by=row.made_by,
        made_at=row.made_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
        visit=None if row.address is None else Visit(address=row.address, browser=row.browser),
    )


def _user(row: sa.Row[Any]) -> User:
    return User(name=row.name, role=Role(row.role), made_by=row.made_by, made_at=row.made_at)

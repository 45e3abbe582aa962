"""Signing in and out: by password, token or one-time link a caller gets a session, which can be revoked at any time.

Guarantee: whoever failed too often waits, also where many try at once; each entry and exit is in the audit log, with
from where, and without what was shown. Known weakness: a signed token (JWT) can't be revoked, only its sessions can.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime

from unstick.domain.access import (
    LINK_LASTS,
    SESSION_LASTS,
    Bearer,
    CredentialKind,
    NewCredential,
    Principal,
    Role,
    Secret,
    Visit,
    read_secret,
    read_token,
)
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import InvalidRequestError, SignInRefusedError, TooManyFailuresError
from unstick.domain.sign_in_failures import SignInTry
from unstick.pipeline.watched import Access, Watched

SIGN_IN_CALL = "access.sign_in"
SIGN_OUT_CALL = "access.sign_out"
MAKE_LINK_CALL = "access.make_link"
_ANONYMOUS = "anonymous"
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """A session that has just begun."""

    secret: Secret
    principal: Principal
    expires_at: datetime


def access_of(watched: Watched) -> Access:
    """Return who gets in; raise `InvalidRequestError` where this ledger doesn't say."""
    if watched.access is None:
        raise InvalidRequestError(f"The ledger of source {watched.source.name!r} doesn't keep who may sign in.")
    return watched.access


def new_secret() -> Secret:
    """Make a secret of 256 random bits, and the id it is found by."""
    return Secret(id=secrets.token_hex(8), key=secrets.token_urlsafe(32))


async def sign_in_by_password(watched: Watched, name: str, password: str, visit: Visit) -> SignedIn:
    """Begin a session for a user.

    Raises:
        SignInRefusedError: there is no such user, or the password is another; nobody learns which.
        TooManyFailuresError: there were too many failures before it; the password wasn't even compared.
    """
    access, tried = access_of(watched), SignInTry(address=visit.address, name=name[:_LONGEST_NAME])
    await _begin(watched, tried, "password", visit)
    user, kept = await access.users.find(tried.name or "") or (None, None)
    if not await access.passwords.matches(password, kept) or user is None:
        raise await _refused(watched, "password", visit, None if user is None else user.name)
    principal = Principal(name=user.name, role=user.role)
    session = _session(principal, visit, password_hash=kept)
    signed_in = await _keep(watched, session, "password")
    await access.failures.succeed(tried)
    return signed_in


async def sign_in_by_bearer(watched: Watched, bearer: Bearer | None, visit: Visit) -> SignedIn:
    """Begin a session for the bearer of a token, None where the token isn't valid; it ends with the token.

    A valid one is never kept waiting: 256 bits can't be guessed.

    Raises:
        SignInRefusedError: the token isn't valid.
        TooManyFailuresError: it isn't, and there were too many of that kind before.
    """
    if bearer is None:
        await _begin(watched, SignInTry(address=visit.address), "token", visit)
        raise await _refused(watched, "token", visit)
    session = _session(bearer.principal, visit, until=bearer.until, opened_by=bearer.token_id)
    return await _keep(watched, session, "token")


async def sign_in_by_link(watched: Watched, shown: str, visit: Visit) -> SignedIn:
    """Begin a session by a one-time link, and strike the link.

    Raises:
        SignInRefusedError: there is no such link, or it was used, or has expired.
        TooManyFailuresError: likewise, and there were too many of that kind before.
    """
    secret = read_secret(shown)
    nobody = Principal(name=_ANONYMOUS, role=Role.VIEWER)
    session = _session(nobody, visit)
    entry = _entry(nobody, SIGN_IN_CALL, AuditOutcome.DONE, {"by": "link", **_from(visit)})
    kept = None if secret is None else await access_of(watched).credentials.spend(secret, session, entry)
    if kept is None:
        await _begin(watched, SignInTry(address=visit.address), "link", visit)
        raise await _refused(watched, "link", visit)
    return SignedIn(secret=session.secret, principal=kept.principal, expires_at=kept.expires_at)


async def make_sign_in_link(watched: Watched, principal: Principal) -> Secret:
    """Make a link by which somebody may sign in as this principal once, within ten minutes."""
    link = NewCredential(
        kind=CredentialKind.LINK,
        secret=new_secret(),
        principal=principal,
        made_by=principal.name,
        lasting=LINK_LASTS,
    )
    entry = _entry(principal, MAKE_LINK_CALL, AuditOutcome.DONE, {"id": link.secret.id})
    await access_of(watched).credentials.keep(link, entry)
    return link.secret


async def session_principal(watched: Watched, shown: str) -> Principal | None:
    """Return whom a session is of, None where there is no such session, or none any more."""
    secret = read_secret(shown)
    session = None if secret is None else await access_of(watched).credentials.present(CredentialKind.SESSION, secret)
    return None if session is None else session.principal


async def token_bearer(watched: Watched, sent: str) -> Bearer | None:
    """Return the bearer of a token that we keep, None where it is none, or none any more."""
    secret = read_token(sent)
    token = None if secret is None else await access_of(watched).credentials.present(CredentialKind.TOKEN, secret)
    return None if token is None else Bearer(principal=token.principal, until=token.expires_at, token_id=token.id)


async def sign_out(watched: Watched, shown: str, visit: Visit) -> None:
    """End a session; one that is over stays so."""
    secret, credentials = read_secret(shown), access_of(watched).credentials
    session = None if secret is None else await credentials.present(CredentialKind.SESSION, secret)
    if session is not None:
        entry = _entry(session.principal, SIGN_OUT_CALL, AuditOutcome.DONE, {"id": session.id, **_from(visit)})
        await credentials.strike(CredentialKind.SESSION, session.id, entry)


async def _begin(watched: Watched, tried: SignInTry, by: str, visit: Visit) -> None:
    wait = await access_of(watched).failures.begin(tried)
    if wait:
        await _note_refused(watched, by, visit, None, "too many failures")
        raise TooManyFailuresError(wait)


async def _refused(watched: Watched, by: str, visit: Visit, name: str | None = None) -> SignInRefusedError:
    """Write down that nobody got in; a name that isn't a user's may be anything, somebody's password too."""
    problem = _PROBLEMS[by]
    await _note_refused(watched, by, visit, name, problem)
    return SignInRefusedError(problem)


async def _note_refused(watched: Watched, by: str, visit: Visit, name: str | None, problem: str) -> None:
    parameters = {"by": by, **_from(visit), **({} if name is None else {"user": name})}
    await watched.ledger.count_read(
        AuditEntry(
            actor=_ANONYMOUS,
            call=SIGN_IN_CALL,
            outcome=AuditOutcome.REFUSED,
            parameters=parameters,
            result={"problem": problem},
        )
    )


def _session(
    principal: Principal,
    visit: Visit,
    *,
    until: datetime | None = None,
    opened_by: str | None = None,
    password_hash: str | None = None,
) -> NewCredential:
    return NewCredential(
        kind=CredentialKind.SESSION,
        secret=new_secret(),
        principal=principal,
        made_by=principal.name,
        lasting=SESSION_LASTS,
        until=until,
        opened_by=opened_by,
        password_hash=password_hash,
        visit=visit,
    )


async def _keep(watched: Watched, session: NewCredential, by: str) -> SignedIn:
    visit = session.visit
    parameters = {"by": by, **({} if visit is None else _from(visit))}
    entry = _entry(session.principal, SIGN_IN_CALL, AuditOutcome.DONE, parameters)
    kept = await access_of(watched).credentials.keep(session, entry)
    if kept is None:  # what opens it was struck while it was being shown
        raise SignInRefusedError(_PROBLEMS[by])
    return SignedIn(secret=session.secret, principal=kept.principal, expires_at=kept.expires_at)


def _entry(principal: Principal, call: str, outcome: AuditOutcome, parameters: dict[str, object]) -> AuditEntry:
    return AuditEntry(
        actor=principal.name, role=principal.role.value, call=call, outcome=outcome, parameters=parameters
    )


def _from(visit: Visit) -> dict[str, object]:
    return {"client_address": visit.address}


_PROBLEMS = {
    "password": "The name or the password is wrong.",
    "token": "The token is not valid.",
    "link": "This link was used already, or it has expired.",
}

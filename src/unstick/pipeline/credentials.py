"""Tokens for programs, and everybody's sessions: made, listed and revoked, each in the audit log."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from unstick.domain.access import (
    Credential,
    CredentialKind,
    NewCredential,
    Principal,
    Role,
    requested_lifetime,
    requested_name,
    token_text,
)
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import UnknownCredentialError
from unstick.domain.wording import Phrase
from unstick.pipeline.signing_in import access_of, new_secret
from unstick.pipeline.watched import Watched

TOKENS_CALL = "tokens"
MAKE_TOKEN_CALL = "tokens.make"  # noqa: S105 - as the audit log names it
REVOKE_TOKEN_CALL = "tokens.revoke"  # noqa: S105 - likewise
REVOKE_SESSION_CALL = "sessions.revoke"
MAX_LISTED = 1_000
"""So many of a kind are listed, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOrder:
    """Who asks for a token, what its bearer is called and may do, and for how long."""

    actor: str
    role: str | None = None
    name: str
    scope: Role
    lasting: timedelta


async def make_token(watched: Watched, order: TokenOrder) -> tuple[Credential, str]:
    """Make a token, and return it with what its bearer sends, which nobody can be told again.

    Raises:
        InvalidRequestError: the name can't be one, or it would be good for too long.
    """
    name = requested_name(order.name)
    new = NewCredential(
        kind=CredentialKind.TOKEN,
        secret=new_secret(),
        principal=Principal(name=f"token:{name}", role=order.scope),
        made_by=order.actor,
        lasting=requested_lifetime(order.lasting),
    )
    parameters = {"name": name, "role": order.scope.value, "seconds": order.lasting.total_seconds()}
    entry = AuditEntry(
        actor=order.actor,
        role=order.role,
        call=MAKE_TOKEN_CALL,
        outcome=AuditOutcome.DONE,
        parameters=parameters,
        result={"id": new.secret.id},
    )
    kept = await access_of(watched).credentials.keep(new, entry)
    if kept is None:
        raise RuntimeError("A token is opened by nothing that could have been struck.")
    return kept, token_text(new.secret)


async def living_tokens(watched: Watched) -> Sequence[Credential]:
    """Return the tokens that haven't expired, the newest first."""
    return await access_of(watched).credentials.living(CredentialKind.TOKEN, MAX_LISTED)


async def living_sessions(watched: Watched, caller: Principal) -> Sequence[Credential]:
    """Return the sessions that a caller may see, the newest first: an administrator sees everybody's."""
    return await access_of(watched).credentials.living(CredentialKind.SESSION, MAX_LISTED, of=_reach(caller))


async def revoke_token(watched: Watched, caller: Principal, token_id: str) -> None:
    """Revoke a token, and end the sessions that it opened.

    Raises:
        UnknownCredentialError: there is none of that id.
    """
    await _strike(watched, caller, REVOKE_TOKEN_CALL, CredentialKind.TOKEN, token_id)


async def revoke_session(watched: Watched, caller: Principal, session_id: str) -> None:
    """End a session: one's own, or anybody's as an administrator.

    Raises:
        UnknownCredentialError: there is none of that id that the caller may see.
    """
    await _strike(watched, caller, REVOKE_SESSION_CALL, CredentialKind.SESSION, session_id)


async def revoke_sessions(watched: Watched, caller: Principal, name: str) -> int:
    """End all sessions of a name, one's own or as an administrator anybody's, and return how many there were.

    Raises:
        UnknownCredentialError: they are another's, and the caller is no administrator.
    """
    if _reach(caller) not in (None, name):
        raise UnknownCredentialError(Phrase("There is no session of %(name)s that you may end.", name=repr(name)))
    entry = _entry(caller, REVOKE_SESSION_CALL, {"name": name})
    return await access_of(watched).credentials.strike_all(CredentialKind.SESSION, name, entry)


def _reach(caller: Principal) -> str | None:
    """Return whose sessions a caller may see and end, None for everybody's."""
    return None if caller.role.allows(Role.ADMIN) else caller.name


async def _strike(watched: Watched, caller: Principal, call: str, kind: CredentialKind, credential_id: str) -> None:
    entry = _entry(caller, call, {"id": credential_id})
    if not await access_of(watched).credentials.strike(kind, credential_id, entry, of=_reach(caller)):
        raise _unknown(kind, credential_id)


def _entry(caller: Principal, call: str, parameters: dict[str, object]) -> AuditEntry:
    return AuditEntry(
        actor=caller.name, role=caller.role.value, call=call, outcome=AuditOutcome.DONE, parameters=parameters
    )


def _unknown(kind: CredentialKind, credential_id: str) -> UnknownCredentialError:
    shown = repr(credential_id)
    if kind is CredentialKind.SESSION:
        return UnknownCredentialError(Phrase("There is no session %(id)s, or none any more.", id=shown))
    return UnknownCredentialError(Phrase("There is no token %(id)s, or none any more.", id=shown))

"""Bearer tokens: those the ledger keeps, and signed ones: JWT, HS256 and nothing else, signed with one secret.

A signed one must say who (`sub`), until when (`exp`) and as what (`role`). Where it says who made it (`iss`) or for
whom (`aud`), that must be us; a platform's own admin tokens often say neither and are welcome.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import jwt
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from unstick.api.problems import RefusedError
from unstick.config import AuthSettings, secret_bytes
from unstick.domain.access import TOKEN_PREFIX, Bearer, Principal, Role
from unstick.pipeline.signing_in import token_bearer
from unstick.pipeline.watched import OpenWatched

_ALGORITHM = "HS256"
_NOT_VALID = "The token is not valid."
_LATEST = datetime.max.replace(tzinfo=UTC)

ReadBearer = Callable[[str], Awaitable[Bearer]]
"""Reads what stands after `Bearer`, or refuses it by raising a `RefusedError`."""

_bearer = HTTPBearer(
    auto_error=False, scheme_name="bearer", description="A token as `unstick token make` or `unstick token sign` does."
)


def read_bearer(secret: SecretStr, auth: AuthSettings, kept: OpenWatched | None = None) -> ReadBearer:
    """Return what reads tokens: signed ones, and those kept in the ledger that `kept` opens.

    Raises:
        ConfigurationError: the secret is too short to be one.
    """
    key = secret_bytes(secret)

    async def read(sent: str) -> Bearer:
        if kept is None or not sent.startswith(TOKEN_PREFIX):
            return _signed(_claims(sent, key, auth))
        async with kept() as watched:
            bearer = await token_bearer(watched, sent)
        if bearer is None:
            raise RefusedError(401, _NOT_VALID)
        return bearer

    return read


def bearer_principal(
    secret: SecretStr, auth: AuthSettings, kept: OpenWatched | None = None
) -> Callable[..., Awaitable[Principal]]:
    """Return the dependency that reads a caller's token, as `read_bearer` does.

    Raises:
        ConfigurationError: the secret is too short to be one.
    """
    read = read_bearer(secret, auth, kept)

    async def principal(sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Principal:
        if sent is None:
            raise RefusedError(401, "Send a token: `Authorization: Bearer <token>`.")
        return (await read(sent.credentials)).principal

    return principal


def mint_token(secret: SecretStr, *, role: Role, subject: str, lifetime: timedelta, auth: AuthSettings) -> str:
    """Make a token.

    Raises:
        ConfigurationError: the secret is too short to be one.
    """
    now = datetime.now(UTC)
    claims = {
        "sub": subject,
        "role": role.value,
        "iss": auth.issuer,
        "aud": auth.audience,
        "iat": now,
        "exp": now + lifetime,
    }
    return jwt.encode(claims, secret_bytes(secret), _ALGORITHM)


def _claims(token: str, key: bytes, auth: AuthSettings) -> dict[str, Any]:
    try:
        claims = jwt.decode(
            token,
            key,
            [_ALGORITHM],
            {
                "require": ["exp", "sub"],
                "enforce_minimum_key_length": True,
                "verify_aud": False,  # checked below: PyJWT would refuse the tokens that carry none
                "verify_iss": False,
                "verify_iat": False,  # a minter whose clock is a second ahead has done nothing wrong
            },
        )
    except jwt.ExpiredSignatureError as error:
        raise RefusedError(401, "The token has expired.") from error
    except jwt.PyJWTError as error:
        raise RefusedError(401, _NOT_VALID) from error
    if not _made_by_and_for_us(claims, auth):
        raise RefusedError(401, "The token was made by or for somebody else.")
    return claims


def _made_by_and_for_us(claims: dict[str, Any], auth: AuthSettings) -> bool:
    audience = claims.get("aud", auth.audience)
    audiences = audience if isinstance(audience, list) else [audience]
    return claims.get("iss", auth.issuer) == auth.issuer and auth.audience in audiences


def _signed(claims: dict[str, Any]) -> Bearer:
    name, role = claims["sub"], claims.get("role")
    if not name:
        raise RefusedError(401, _NOT_VALID)
    if role not in list(Role):
        raise RefusedError(
            403, "The token's role opens nothing here.", actor=name, role=None if role is None else str(role)
        )
    return Bearer(principal=Principal(name=name, role=Role(role)), until=_instant(claims["exp"]))


def _instant(seconds: float) -> datetime:
    """Return an end that PyJWT found to be in the future, however far."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return _LATEST
